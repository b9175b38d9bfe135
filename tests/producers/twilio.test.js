// Twilio: the downstream validates status callbacks with `twilio`.
//
// Twilio signs the URL to which it posts, with its query. This is the public URL of the source. So the downstream joins that
// URL and the query of the request. Twilio's middleware for Express does this if it has the public host, and the
// destination has the path of the public URL.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import twilio from "twilio";
import { startDownstream } from "./downstream.js";
import { onEachDatabase } from "./surehook.js";

const AUTH_TOKEN = "12345678901234567890123456789012";
const PUBLIC_HOST = { protocol: "https", host: "hooks.example.com" };
const PUBLIC_URL = "https://hooks.example.com/webhooks/twilio";
const QUERY = "?order=1001&tenant=acme%20inc&note=a%2Bb+c&order=2&empty=&flag&name=%C3%A9";

function twilioService({ url, headers, rawBody, body }, response) {
  const signature = headers["x-twilio-signature"];
  const signedUrl = PUBLIC_URL + url.slice(url.indexOf("?"));
  const parameters = Object.fromEntries(new URLSearchParams(body));
  const isValid = url.includes("bodySHA256=")
    ? twilio.validateRequestWithBody(AUTH_TOKEN, signature, signedUrl, body)
    : twilio.validateRequest(AUTH_TOKEN, signature, signedUrl, parameters);
  const request = {
    originalUrl: url,
    headers,
    header: (name) => headers[name.toLowerCase()],
    body: parameters,
    rawBody,
  };
  const isValidForExpress = twilio.validateExpressRequest(request, AUTH_TOKEN, PUBLIC_HOST);
  response.writeHead(isValid && isValidForExpress ? 204 : 400).end();
}

/** The headers of a status callback. Twilio signs the parameters of a form, and of a body in JSON the hash in the query. */
const headersOf = (token, query, parameters, type = "application/x-www-form-urlencoded; charset=UTF-8") => ({
  "content-type": type,
  "user-agent": "TwilioProxy/1.1",
  "i-twilio-idempotency-token": token,
  "x-twilio-signature": twilio.getExpectedTwilioSignature(AUTH_TOKEN, PUBLIC_URL + query, parameters),
});

const PARAMETERS = {
  AccountSid: "AC0",
  From: "+15005550006",
  MessageSid: "SM0",
  MessageStatus: "delivered",
  To: "+15005550010",
};
const FORM = new URLSearchParams(PARAMETERS).toString();

onEachDatabase("Twilio: a status callback validates with its query, and a retry is a replay", async (t, surehook) => {
  const { url } = await startDownstream(t, twilioService);
  const service = await surehook(`[sources.twilio]\nproducer = "twilio"\ndestination = "${url}/webhooks/twilio"\n`);
  const post = () => service.post(`/webhooks/twilio${QUERY}`, headersOf("97e4b1ee", QUERY, PARAMETERS), FORM);

  const answer = await post();
  const retry = await post();

  assert.deepEqual([answer.status, answer.body], [200, ""]);
  assert.equal(retry.headers["idempotent-replayed"], "true");
  const event = await service.eventWhen("delivered", answer.headers["surehook-event-id"]);
  assert.equal(event.idempotency_key, "97e4b1ee");
});

onEachDatabase("Twilio: a body in JSON validates with its hash in the query", async (t, surehook) => {
  const { url } = await startDownstream(t, twilioService);
  const service = await surehook(`[sources.twilio]\nproducer = "twilio"\ndestination = "${url}/webhooks/twilio"\n`);
  const body = '{"CallSid":"CA0","CallStatus":"completed"}';
  const query = `?order=1001&bodySHA256=${createHash("sha256").update(body).digest("hex")}`;

  const answer = await service.post(`/webhooks/twilio${query}`, headersOf("c", query, {}, "application/json"), body);

  await service.eventWhen("delivered", answer.headers["surehook-event-id"]);
});

onEachDatabase("Twilio: another query than the signed one is refused", async (t, surehook) => {
  const { url } = await startDownstream(t, twilioService);
  const service = await surehook(`[sources.twilio]\nproducer = "twilio"\ndestination = "${url}/webhooks/twilio"\n`);

  const answer = await service.post("/webhooks/twilio?order=1002", headersOf("d", "?order=1001", PARAMETERS), FORM);

  await service.eventWhen("dead_lettered", answer.headers["surehook-event-id"]);
});
