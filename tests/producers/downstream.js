// Services that receive events.

import assert from "node:assert/strict";
import { execSync } from "node:child_process";
import http from "node:http";
import { start } from "./processes.js";
import { post } from "./surehook.js";

/**
 * Serves `handle` on a free port. The request has its whole body in `rawBody` (bytes) and in `body` (text). `received`
 * lists the requests, each with its response.
 */
export async function listen(handle) {
  const received = [];
  const server = http.createServer(async (request, response) => {
    request.rawBody = Buffer.concat(await request.toArray());
    request.body = request.rawBody.toString();
    received.push({ headers: request.headers, rawBody: request.rawBody, response });
    await handle(request, response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${server.address().port}`, received, server };
}

/** As `listen`, until the test ends. */
export async function startDownstream(t, handle) {
  const downstream = await listen(handle);
  t.after(() => {
    downstream.server.close();
    downstream.server.closeAllConnections();
  });
  return downstream;
}

/** Starts a service of `services/` in a process whose clock is ten minutes ahead. Returns its URL. */
export async function startTenMinutesLater(t, service) {
  const faketime = execSync(
    "ls /usr/lib*/faketime/libfaketime.so.1 /usr/lib/*/faketime/libfaketime.so.1 2>/dev/null || true",
  );
  const program = await start([process.execPath, new URL("serve.js", import.meta.url).pathname, service], {
    environment: {
      LD_PRELOAD: faketime.toString().split("\n")[0],
      FAKETIME: "+600s",
      FAKETIME_DONT_FAKE_MONOTONIC: "1",
    },
    ready: /(?<url>http:\S+) at (?<now>\d+)/,
  });
  t.after(() => program.stop());
  const aheadSeconds = (program.ready.groups.now - Date.now()) / 1000;
  assert.ok(aheadSeconds > 590 && aheadSeconds < 610, `the clock of the service is ${aheadSeconds} seconds ahead`);
  return program.ready.groups.url;
}

/** Starts a proxy that passes requests on, and closes the connection instead of passing the first response back. */
export async function startLossyProxy(t, target) {
  const passed = [];
  const { url } = await startDownstream(t, async (request, response) => {
    const answer = await post(target + request.url, request.headers, request.rawBody);
    passed.push({ body: request.body, answer });
    if (passed.length === 1) response.destroy();
    else response.writeHead(answer.status).end(answer.body);
  });
  return { url, passed };
}
