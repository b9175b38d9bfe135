// GitHub: the receiver is `@octokit/webhooks`, and the webhooks are those of `@octokit/webhooks-examples`.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { createRequire } from "node:module";
import { createNodeMiddleware, Webhooks } from "@octokit/webhooks";
import { startDownstream } from "./downstream.js";
import { until } from "./processes.js";
import { onEachDatabase } from "./surehook.js";

const SECRET = "a long secret";
const examples = createRequire(import.meta.url)("@octokit/webhooks-examples").flatMap(({ name, examples }) =>
  examples.map((payload) => ({ name, body: JSON.stringify(payload) })),
);

/** A webhook with the headers that GitHub sends. */
async function webhook({ name, body }) {
  const signature = await new Webhooks({ secret: SECRET }).sign(body);
  const headers = {
    accept: "*/*",
    "content-type": "application/json",
    "user-agent": "GitHub-Hookshot/044aadd",
    "x-github-delivery": randomUUID(),
    "x-github-event": name,
    "x-github-hook-id": "292430182",
    "x-github-hook-installation-target-id": "79929171",
    "x-github-hook-installation-target-type": "repository",
    "x-hub-signature-256": signature,
  };
  return { headers, body };
}

/** The service of a user of `@octokit/webhooks`, with the ids of the webhooks that it has verified. */
function receiver(secret) {
  const webhooks = new Webhooks({ secret });
  const verified = [];
  webhooks.onAny(({ id }) => verified.push(id));
  const log = { debug() {}, info() {}, warn() {}, error() {} };
  return { verified, handle: createNodeMiddleware(webhooks, { path: "/github", log }) };
}

onEachDatabase("GitHub: each example arrives once and verifies, and a redelivery is a replay", async (t, surehook) => {
  assert.equal(examples.length, 329);
  const { verified, handle } = receiver(SECRET);
  const downstream = await startDownstream(t, handle);
  const service = await surehook(`[sources.github]\nproducer = "github"\ndestination = "${downstream.url}/github"\n`);
  const webhooks = await Promise.all(examples.map(webhook));
  const postAll = () =>
    Promise.all(webhooks.map(({ headers, body }) => service.post("/webhooks/github", headers, body)));

  const first = await postAll();
  await until("every webhook to be verified", () => verified.length >= webhooks.length);
  const second = await postAll();
  await service.stop();

  for (const [at, answer] of first.entries()) {
    assert.equal(answer.status, 202);
    assert.equal(answer.headers["idempotent-replayed"], undefined);
    assert.equal(second[at].status, 202);
    assert.equal(second[at].headers["idempotent-replayed"], "true");
    assert.equal(second[at].headers["surehook-event-id"], answer.headers["surehook-event-id"]);
  }
  assert.deepEqual(verified.sort(), webhooks.map(({ headers }) => headers["x-github-delivery"]).sort());
  assert.equal(downstream.received.length, webhooks.length);
  for (const { headers, rawBody, response } of downstream.received) {
    const sent = webhooks.find((one) => one.headers["x-github-delivery"] === headers["x-github-delivery"]);
    assert.equal(response.statusCode, 200);
    assert.ok(rawBody.equals(Buffer.from(sent.body)));
    for (const [name, value] of Object.entries(sent.headers)) assert.equal(headers[name], value, name);
  }
});

onEachDatabase("GitHub: a redelivery redrives a dead letter", async (t, surehook) => {
  let { handle } = receiver("another secret");
  const downstream = await startDownstream(t, (request, response) => handle(request, response));
  const service = await surehook(`[sources.github]\nproducer = "github"\ndestination = "${downstream.url}/github"\n`);
  const { headers, body } = await webhook(examples[0]);
  const {
    headers: { "surehook-event-id": id },
  } = await service.post("/webhooks/github", headers, body);
  const refused = await service.eventWhen("dead_lettered", id);
  assert.equal(refused.reason, "permanent");
  assert.match(refused.history[0].excerpt, /signature does not match/);

  const corrected = receiver(SECRET);
  handle = corrected.handle;
  const answer = await service.post("/webhooks/github", headers, body);

  assert.equal(answer.status, 202);
  assert.equal(answer.headers["idempotent-replayed"], "true");
  assert.equal((await service.eventWhen("delivered", id)).attempts, 2);
  assert.deepEqual(corrected.verified, [headers["x-github-delivery"]]);
});
