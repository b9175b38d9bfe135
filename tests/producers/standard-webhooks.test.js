// Standard Webhooks: signed and verified by `standardwebhooks`.

import assert from "node:assert/strict";
import { Webhook } from "standardwebhooks";
import { startDownstream, startTenMinutesLater } from "./downstream.js";
import { secret, service as standardService } from "./services/standard-webhooks.js";
import { onEachDatabase } from "./surehook.js";

const BODY = '{"type":"contact.created","data":{"id":"1f81eb52-5198-4599-803e-771906343485"}}';

/** A webhook that was signed at a time. Each attempt of a producer has a new time and a new signature. */
function webhook(id, signedAt = new Date(), signer = secret) {
  const headers = {
    "content-type": "application/json",
    "webhook-id": id,
    "webhook-timestamp": String(Math.floor(signedAt / 1000)),
    "webhook-signature": `v1,bm90IHRoaXMgb25l ${new Webhook(signer).sign(id, signedAt, BODY)}`,
  };
  return [headers, BODY];
}

const minutesAgo = (minutes) => new Date(Date.now() - minutes * 60_000);

const sources = (url) => `
[sources.present-time]
producer = "standard-webhooks"
destination = "${url}/with-present-time"
[sources.time-of-receipt]
producer = "standard-webhooks"
destination = "${url}/with-time-of-receipt"
`;

onEachDatabase("Standard Webhooks: an event verifies, and a retry is a replay", async (t, surehook) => {
  const downstream = await startDownstream(t, standardService);
  const service = await surehook(sources(downstream.url));
  for (const source of ["present-time", "time-of-receipt"]) {
    const answer = await service.post(`/webhooks/${source}`, ...webhook("msg_1", minutesAgo(1)));
    const retry = await service.post(`/webhooks/${source}`, ...webhook("msg_1"));

    assert.equal(retry.headers["idempotent-replayed"], "true");
    const event = await service.eventWhen("delivered", answer.headers["surehook-event-id"]);
    assert.equal(event.idempotency_key, "msg_1");
    assert.equal(event.history[0].excerpt, "verified msg_1");
  }
});

onEachDatabase(
  "Standard Webhooks: after ten minutes an event verifies with its time of receipt",
  async (t, surehook) => {
    const service = await surehook(sources(await startTenMinutesLater(t, "standard-webhooks")));

    const late = await service.post("/webhooks/present-time", ...webhook("msg_1"));
    const inTime = await service.post("/webhooks/time-of-receipt", ...webhook("msg_1"));

    const refused = await service.eventWhen("dead_lettered", late.headers["surehook-event-id"]);
    assert.equal(refused.history[0].excerpt, "Message timestamp too old");
    const delivered = await service.eventWhen("delivered", inTime.headers["surehook-event-id"]);
    assert.equal(delivered.history[0].excerpt, "verified msg_1");
  },
);

onEachDatabase("Standard Webhooks: wrong and old signatures are refused", async (t, surehook) => {
  const downstream = await startDownstream(t, standardService);
  const service = await surehook(sources(downstream.url));
  const otherSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
  for (const [source, webhooks] of [
    ["present-time", [webhook("msg_1", new Date(), otherSecret), webhook("msg_2", minutesAgo(10))]],
    ["time-of-receipt", [webhook("msg_1", new Date(), otherSecret), webhook("msg_2", minutesAgo(10))]],
  ]) {
    for (const { headers } of await Promise.all(webhooks.map((one) => service.post(`/webhooks/${source}`, ...one)))) {
      const { reason } = await service.eventWhen("dead_lettered", headers["surehook-event-id"]);
      assert.equal(reason, "permanent");
    }
  }
});
