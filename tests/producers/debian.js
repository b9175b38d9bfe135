// Servers of Debian's packages. `install.sh` unpacks the packages and does not install them, so no system service runs.

import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("../root", import.meta.url));

export const registry = [`${root}/usr/bin/docker-registry`];

// Debian's build reads /usr/share/prometheus, so the folder of the unpacked packages is its root.
const asRoot = process.getuid() === 0 ? [] : ["--map-root-user"];
export const alertmanager = ["unshare", ...asRoot, `--root=${root}`, "/usr/bin/prometheus-alertmanager"];

/** The options of a test that needs this program. */
export function needs([program, ...options]) {
  const { status, stderr, error } = spawnSync(program, [...options, "--version"], { encoding: "utf8" });
  return status === 0 ? {} : { skip: `the server does not run on this machine: ${error?.message ?? stderr.trim()}` };
}
