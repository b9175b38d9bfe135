// A service that verifies the signatures of Standard Webhooks with the library `standardwebhooks`.

import assert from "node:assert/strict";
import { timingSafeEqual } from "node:crypto";
import { Webhook } from "standardwebhooks";

export const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const webhook = new Webhook(secret);
const TOLERANCE_SECONDS = 300;

export function service({ url, headers, body }, response) {
  try {
    if (url === "/with-time-of-receipt") verify(headers, body);
    else webhook.verify(body, headers);
    response.writeHead(200).end(`verified ${headers["webhook-id"]}`);
  } catch (error) {
    response.writeHead(400).end(error.message);
  }
}

/** As `webhook.verify`, which has no parameter for the time of receipt. */
function verify(headers, body) {
  const signedAt = new Date(Number(headers["webhook-timestamp"]) * 1000);
  const expected = Buffer.from(webhook.sign(headers["webhook-id"], signedAt, body));
  const given = headers["webhook-signature"].split(" ").map((signature) => Buffer.from(signature));
  const isExpected = (signature) => signature.length === expected.length && timingSafeEqual(signature, expected);
  assert.ok(given.some(isExpected), "No matching signature found");
  const ageSeconds = (Date.parse(headers["surehook-received-at"]) - signedAt) / 1000;
  assert.ok(Math.abs(ageSeconds) <= TOLERANCE_SECONDS, "Message timestamp too old or too new");
}
