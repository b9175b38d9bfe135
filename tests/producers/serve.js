// Serves a service of `services/` in this process, and prints its URL and the time. Usage: serve.js NAME

import { listen } from "./downstream.js";

const { service } = await import(`./services/${process.argv[2]}.js`);
const { url } = await listen(service);
console.log(`${url} at ${Date.now()}`);
