// Stripe: signed and verified by `stripe`.

import assert from "node:assert/strict";
import Stripe from "stripe";
import { startDownstream, startTenMinutesLater } from "./downstream.js";
import { secret, service as stripeService } from "./services/stripe.js";
import { onEachDatabase } from "./surehook.js";

const { webhooks } = new Stripe("sk_test_not_used");

/** A webhook of an event. `pending` is the number of its webhooks that are not delivered yet. */
function webhook(id, pending) {
  const body = JSON.stringify({ id, object: "event", type: "charge.succeeded", pending_webhooks: pending }, null, 2);
  const signature = webhooks.generateTestHeaderString({ payload: body, secret });
  const headers = { "content-type": "application/json; charset=utf-8", "stripe-signature": signature };
  return [headers, body];
}

const sources = (url) => `
[sources.present-time]
producer = "stripe"
destination = "${url}/with-present-time"
[sources.time-of-receipt]
producer = "stripe"
destination = "${url}/with-time-of-receipt"
`;

onEachDatabase("Stripe: an event verifies, and a retry with another body is a replay", async (t, surehook) => {
  const downstream = await startDownstream(t, stripeService);
  const service = await surehook(sources(downstream.url));
  for (const source of ["present-time", "time-of-receipt"]) {
    const answer = await service.post(`/webhooks/${source}`, ...webhook("evt_1", 2));
    const retry = await service.post(`/webhooks/${source}`, ...webhook("evt_1", 1));

    assert.equal(answer.status, 202);
    assert.equal(retry.headers["idempotent-replayed"], "true");
    const event = await service.eventWhen("delivered", answer.headers["surehook-event-id"]);
    assert.equal(event.idempotency_key, "evt_1");
    assert.equal(event.history.at(-1).excerpt, "verified evt_1");
  }
});

onEachDatabase("Stripe: after ten minutes an event verifies with its time of receipt", async (t, surehook) => {
  const service = await surehook(sources(await startTenMinutesLater(t, "stripe")));

  const late = await service.post("/webhooks/present-time", ...webhook("evt_1", 1));
  const inTime = await service.post("/webhooks/time-of-receipt", ...webhook("evt_1", 1));

  const refused = await service.eventWhen("dead_lettered", late.headers["surehook-event-id"]);
  assert.equal(refused.history.at(-1).excerpt, "Timestamp outside the tolerance zone");
  const delivered = await service.eventWhen("delivered", inTime.headers["surehook-event-id"]);
  assert.equal(delivered.history.at(-1).excerpt, "verified evt_1");
});

onEachDatabase("Stripe: an old signature is refused also with the time of receipt", async (t, surehook) => {
  const downstream = await startDownstream(t, stripeService);
  const service = await surehook(sources(downstream.url));
  const body = JSON.stringify({ id: "evt_old", object: "event" });
  const timestamp = Math.floor(Date.now() / 1000) - 600;
  const signature = webhooks.generateTestHeaderString({ payload: body, secret, timestamp });

  const answer = await service.post("/webhooks/time-of-receipt", { "stripe-signature": signature }, body);

  const refused = await service.eventWhen("dead_lettered", answer.headers["surehook-event-id"]);
  assert.equal(refused.history.at(-1).excerpt, "Timestamp outside the tolerance zone");
});
