// The program under test, on each of its databases.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, writeFileSync } from "node:fs";
import http from "node:http";
import path from "node:path";
import { test } from "node:test";
import { start, until } from "./processes.js";

const SETTINGS = `
listen = "127.0.0.1:0"
log = "json"
drain_timeout = "5s"
[defaults]
initial_delay = "100ms"
max_delay = "1s"
`;

/** Defines a test for each database. `run` receives the test's context, and a function that starts the program. */
export function onEachDatabase(name, run, options = {}) {
  for (const database of ["SQLite", "PostgreSQL"]) {
    test(`${name} (${database})`, options, (t) => run(t, (sources) => startSurehook(t, database, sources)));
  }
}

/** A new folder for the files of one test. They are kept until the next run. */
export function newFolder() {
  return mkdtempSync(path.join(process.env.RUN_FOLDER, "test-"));
}

/** Starts the program with these sources, and waits until it is ready. It is stopped at the end of the test. */
async function startSurehook(t, database, sources) {
  const folder = newFolder();
  writeFileSync(path.join(folder, "surehook.toml"), SETTINGS + sources);
  const program = await start([process.env.SUREHOOK_PROGRAM, "serve"], {
    folder,
    environment: { SUREHOOK_DATABASE: database === "SQLite" ? "sqlite:surehook.db" : newPostgresDatabase() },
    ready: /"message":"listening","address":"(?<address>[^"]+)"/,
  });
  const stop = async () => {
    const exit = await program.stop();
    writeFileSync(path.join(folder, "surehook.log"), program.output);
    assert.equal(exit, 0, `the program failed: see ${folder}/surehook.log`);
    assert.doesNotMatch(program.output, /panicked|"level":"ERROR"/, `see ${folder}/surehook.log`);
  };
  t.after(stop);
  const url = `http://${program.ready.groups.address}`;
  await until("the program to be ready", async () => (await get(`${url}/ready`)).status === 200);
  return {
    url,
    /** Stops the program. It must end without an error. */
    stop,
    post: (target, headers, body) => post(url + target, headers, body),
    /** The newest 50 events of a source. */
    events: async (source) => JSON.parse((await get(`${url}/events?source=${source}`)).body).events,
    /** Waits until an event has this status, and returns it. */
    eventWhen: async (status, id) => {
      let event;
      const isInStatus = async () => {
        event = JSON.parse((await get(`${url}/events/${id}`)).body);
        return event.status === status;
      };
      await until(`the event to be ${status}`, isInStatus, () => JSON.stringify(event));
      return event;
    },
  };
}

function newPostgresDatabase() {
  const name = path.basename(newFolder()).toLowerCase();
  execFileSync("createdb", [name]);
  return `postgres:///${name}?host=${encodeURIComponent(process.env.PGHOST)}&user=${process.env.PGUSER}`;
}

export const get = (url) => send("GET", url, {}, "");

/** Posts a body with exactly these headers, and those that HTTP needs. */
export const post = (url, headers, body) => send("POST", url, headers, body);

// At most 16 requests are sent at the same time.
const agent = new http.Agent({ maxSockets: 16 });

export function send(method, url, headers, body) {
  return new Promise((resolve, reject) => {
    const request = http.request(url, { method, headers, agent }, async (response) => {
      const chunks = await response.toArray();
      resolve({ status: response.statusCode, headers: response.headers, body: Buffer.concat(chunks).toString() });
    });
    request.on("error", reject);
    request.end(body);
  });
}
