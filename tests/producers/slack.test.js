// Slack: the downstream is an app with Bolt's receiver for HTTP.

import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { startDownstream, startTenMinutesLater } from "./downstream.js";
import { until } from "./processes.js";
import { mentions, service as slackService, signingSecret } from "./services/slack.js";
import { onEachDatabase } from "./surehook.js";

/** A request with Slack's headers. */
function request(content, secret = signingSecret) {
  const body = JSON.stringify(content);
  const timestamp = Math.floor(Date.now() / 1000);
  const signature = createHmac("sha256", secret).update(`v0:${timestamp}:${body}`).digest("hex");
  const headers = {
    "content-type": "application/json",
    "user-agent": "Slackbot 1.0 (+https://api.slack.com/robots)",
    "x-slack-request-timestamp": String(timestamp),
    "x-slack-signature": `v0=${signature}`,
  };
  return [headers, body];
}

const challenge = {
  token: "not-used",
  challenge: "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P",
  type: "url_verification",
};

const mention = (id, text) => ({
  token: "not-used",
  team_id: "T1",
  api_app_id: "A1",
  event: { type: "app_mention", user: "U2", text, ts: "1764325530.000100", channel: "C1" },
  type: "event_callback",
  event_id: id,
  event_time: 1764325530,
});

const sources = (url) => `
[sources.slack]
producer = "slack"
destination = "${url}/slack/events"
dead_letter_on = [401]
[sources.time-of-receipt]
producer = "slack"
destination = "${url}/with-time-of-receipt"
`;

onEachDatabase("Slack: Bolt answers the handshake and receives the events", async (t, surehook) => {
  const downstream = await startDownstream(t, slackService);
  const service = await surehook(sources(downstream.url));
  for (const source of ["slack", "time-of-receipt"]) {
    mentions.length = 0;

    const handshake = await service.post(`/webhooks/${source}`, ...request(challenge));
    const forgedHandshake = await service.post(`/webhooks/${source}`, ...request(challenge, "another secret"));
    assert.deepEqual(await service.events(source), []);
    const answer = await service.post(`/webhooks/${source}`, ...request(mention("Ev1", "hello")));
    const [headers, body] = request(mention("Ev1", "hello"));
    const retry = { ...headers, "x-slack-retry-num": "1", "x-slack-retry-reason": "http_timeout" };
    const answerToRetry = await service.post(`/webhooks/${source}`, retry, body);

    assert.equal(handshake.status, 200);
    assert.equal(JSON.parse(handshake.body).challenge, challenge.challenge);
    assert.equal(forgedHandshake.status, source === "slack" ? 401 : 400);
    assert.equal(answer.status, 202);
    assert.equal(answerToRetry.headers["idempotent-replayed"], "true");
    const event = await service.eventWhen("delivered", answer.headers["surehook-event-id"]);
    assert.equal(event.idempotency_key, "Ev1");
    await until("the app to receive the event", () => mentions.length > 0);
    assert.deepEqual(mentions, ["hello"]);
  }
});

onEachDatabase("Slack: an event with a wrong signature is dead-lettered", async (t, surehook) => {
  const downstream = await startDownstream(t, slackService);
  const service = await surehook(sources(downstream.url));
  for (const [source, statusCode] of [
    ["slack", 401],
    ["time-of-receipt", 400],
  ]) {
    const answer = await service.post(`/webhooks/${source}`, ...request(mention("Ev1", "hello"), "another secret"));

    const { reason, history } = await service.eventWhen("dead_lettered", answer.headers["surehook-event-id"]);
    assert.equal(reason, "permanent");
    assert.equal(history[0].status_code, statusCode);
  }
});

onEachDatabase("Slack: after ten minutes an event verifies with its time of receipt", async (t, surehook) => {
  const service = await surehook(sources(await startTenMinutesLater(t, "slack")));

  const late = await service.post("/webhooks/slack", ...request(mention("Ev1", "hello")));
  const inTime = await service.post("/webhooks/time-of-receipt", ...request(mention("Ev1", "hello")));

  const refused = await service.eventWhen("dead_lettered", late.headers["surehook-event-id"]);
  assert.equal(refused.history[0].status_code, 401);
  const delivered = await service.eventWhen("delivered", inTime.headers["surehook-event-id"]);
  assert.equal(delivered.attempts, 1);
});
