// Runs the tests of this folder with a private PostgreSQL server. Usage: run.js [FILE…], with SUREHOOK_PROGRAM set.

import { execFileSync, execSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { runAs, start } from "./processes.js";

const here = path.dirname(fileURLToPath(import.meta.url));
// In the root folder of Alertmanager, which reads its configuration from there.
const runFolder = path.join(here, "../root/run");
rmSync(runFolder, { recursive: true, force: true });
mkdirSync(runFolder, { recursive: true });

// Where Debian has the server's programs.
process.env.PATH += `:${execSync("ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -1 || true").toString().trim()}`;
const postgres = await startPostgres();
// The tests receive an interrupt too, and end.
process.on("SIGINT", () => {});
const all = readdirSync(here).filter((name) => name.endsWith(".test.js"));
const files = process.argv.length > 2 ? process.argv.slice(2) : all;
const tests = spawn(process.execPath, ["--test", "--test-reporter=spec", ...files], {
  cwd: here,
  env: { ...process.env, RUN_FOLDER: runFolder, PGHOST: postgres.folder, PGUSER: "postgres" },
  stdio: "inherit",
});
const code = await new Promise((resolve) => tests.on("close", resolve));
await postgres.stop();
rmSync(postgres.folder, { recursive: true, force: true });
process.exit(code ?? 1);

/** Starts a server that listens only on a socket in its folder. It refuses to run as root: then it runs as `postgres`. */
async function startPostgres() {
  const folder = mkdtempSync(path.join(tmpdir(), "surehook-producers-"));
  const user = process.getuid() === 0 ? "postgres" : undefined;
  if (user) execFileSync("chown", [user, folder]);
  const options = ["--auth=trust", "--username=postgres", "--no-sync", `--pgdata=${folder}/data`];
  execFileSync("setpriv", [...runAs(user), "initdb", ...options], { cwd: folder });
  const command = ["postgres", "-D", `${folder}/data`, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"];
  const { stop } = await start(command, { user, folder, signal: "SIGINT", ready: /ready to accept connections/ });
  return { folder, stop };
}
