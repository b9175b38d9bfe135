// Docker registry: the producer is the server of Debian's package.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { writeFileSync } from "node:fs";
import { needs, registry } from "./debian.js";
import { startDownstream, startLossyProxy } from "./downstream.js";
import { start, until } from "./processes.js";
import { newFolder, onEachDatabase, post, send } from "./surehook.js";

/** Starts a registry that sends its notifications to `url`. */
async function startRegistry(t, url) {
  const folder = newFolder();
  writeFileSync(
    `${folder}/registry.yml`,
    `version: 0.1
storage: {filesystem: {rootdirectory: "${folder}/images"}}
http: {addr: "127.0.0.1:0"}
notifications:
  endpoints: [{name: surehook, url: "${url}/webhooks/registry", timeout: 1s, threshold: 3, backoff: 1s}]`,
  );
  const program = await start([...registry, "serve", `${folder}/registry.yml`], {
    ready: /listening on (?<address>127[^"]+)/,
  });
  t.after(() => program.stop());
  return `http://${program.ready.groups.address}`;
}

const digestOf = (content) => `sha256:${createHash("sha256").update(content).digest("hex")}`;

/** Pushes an image as Docker does. Returns the digests of its parts, in order. */
async function pushImage(url) {
  const descriptors = [];
  for (const content of ['{"architecture":"amd64","os":"linux"}', "not really a layer"]) {
    const upload = await post(`${url}/v2/tiny/blobs/uploads/`, {}, "");
    const stored = await send("PUT", `${upload.headers.location}&digest=${digestOf(content)}`, {}, content);
    assert.equal(stored.status, 201, stored.body);
    descriptors.push({ size: content.length, digest: digestOf(content) });
  }
  const [config, layer] = descriptors;
  const mediaType = "application/vnd.docker.distribution.manifest.v2+json";
  const manifest = JSON.stringify({
    schemaVersion: 2,
    mediaType,
    config: { mediaType: "application/vnd.docker.container.image.v1+json", ...config },
    layers: [{ mediaType: "application/vnd.docker.image.rootfs.diff.tar.gzip", ...layer }],
  });
  const stored = await send("PUT", `${url}/v2/tiny/manifests/latest`, { "content-type": mediaType }, manifest);
  assert.equal(stored.status, 201, stored.body);
  return [config.digest, layer.digest, digestOf(manifest)].sort();
}

const sources = (url) => `[sources.registry]\nproducer = "docker-registry"\ndestination = "${url}/registry"\n`;

const accept = (_, response) => response.writeHead(204).end();

/** The digests of what was pushed, in order. */
const pushed = ({ received }) => {
  const events = received.flatMap(({ rawBody }) => JSON.parse(rawBody).events);
  return events
    .filter(({ action }) => action === "push")
    .map(({ target }) => target.digest)
    .sort();
};

onEachDatabase(
  "Docker registry: the notifications of a push arrive",
  async (t, surehook) => {
    const downstream = await startDownstream(t, accept);
    const service = await surehook(sources(downstream.url));
    const server = await startRegistry(t, service.url);

    const digests = await pushImage(server);

    await until("the notifications", () => pushed(downstream).length === 3);
    assert.deepEqual(pushed(downstream), digests);
    for (const { headers } of downstream.received) {
      assert.equal(headers["content-type"], "application/vnd.docker.distribution.events.v1+json");
    }
  },
  needs(registry),
);

onEachDatabase(
  "Docker registry: the retry after a lost response is a replay",
  async (t, surehook) => {
    const downstream = await startDownstream(t, accept);
    const service = await surehook(sources(downstream.url));
    const proxy = await startLossyProxy(t, service.url);
    const server = await startRegistry(t, proxy.url);

    const digests = await pushImage(server);

    await until("the notifications", () => proxy.passed.length === 4 && pushed(downstream).length === 3);
    const [lost, retry] = proxy.passed;
    assert.equal(lost.answer.status, 202);
    assert.equal(retry.body, lost.body);
    assert.equal(retry.answer.headers["idempotent-replayed"], "true");
    assert.equal(retry.answer.headers["surehook-event-id"], lost.answer.headers["surehook-event-id"]);
    assert.deepEqual(pushed(downstream), digests);
  },
  needs(registry),
);
