// Servers of Debian's packages, which `install.sh` unpacks and does not install: none of their system services run.

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("../debian", import.meta.url));

/** The options of a test that needs this package. */
export const needs = (name) =>
  existsSync(`${root}/usr/bin/${name}`) ? {} : { skip: `Debian's package ${name} is not available on this machine` };
