// Programs that tests start, and conditions that tests wait for.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { setTimeout } from "node:timers/promises";

const TIME_LIMIT_MS = 30_000;

/** Waits until `check` returns something, and returns that. `state` says in an error what was seen instead. */
export async function until(what, check, state = () => "") {
  const deadline = Date.now() + TIME_LIMIT_MS;
  for (;;) {
    const found = await check();
    if (found) return found;
    assert.ok(Date.now() < deadline, `${what}: not within ${TIME_LIMIT_MS / 1000} seconds ${state()}`);
    await setTimeout(20);
  }
}

/**
 * Starts a program, and waits until its output matches `ready`. The program also ends if this process is killed.
 *
 * Its environment is only PATH and `environment`, so that variables of the caller change nothing.
 */
export async function start(command, { ready, folder, environment = {}, user, signal = "SIGTERM" }) {
  const child = spawn("setpriv", [...runAs(user), "--pdeathsig", signal.slice(3), ...command], {
    cwd: folder,
    env: { PATH: process.env.PATH, ...environment },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const program = { output: "", hasEnded: false };
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text) => (program.output += text));
  }
  const ended = new Promise((resolve) => child.on("close", (code, by) => resolve(code ?? by)));
  ended.then(() => (program.hasEnded = true));
  /** Ends the program, and returns its exit code or the signal that killed it. */
  program.stop = async () => {
    child.kill(signal);
    return ended;
  };
  const isReady = () => {
    assert.ok(!program.hasEnded, `${command[0]} has ended:\n${program.output}`);
    return program.output.match(ready);
  };
  program.ready = await until(`${command[0]} to start`, isReady, () => program.output);
  return program;
}

/** The options of `setpriv` that run a program as a user. */
export const runAs = (user) => (user ? [`--reuid=${user}`, `--regid=${user}`, "--clear-groups"] : []);
