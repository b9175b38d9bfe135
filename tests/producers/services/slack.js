// A Slack app with Bolt's receiver for HTTP.

import { App, HTTPReceiver, isValidSlackRequest, LogLevel } from "@slack/bolt";

export const signingSecret = "8f742231b10e8888abcd99yyyzzz85a5";

/** The texts of the messages that the app has received. */
export const mentions = [];

function appWith(options) {
  const receiver = new HTTPReceiver({
    signingSecret,
    endpoints: "/slack/events",
    logLevel: LogLevel.ERROR,
    ...options,
  });
  const authorize = async () => ({ botToken: "xoxb-not-used", botId: "B1", botUserId: "U1" });
  const app = new App({ receiver, authorize, logLevel: LogLevel.ERROR });
  app.event("app_mention", async ({ event }) => void mentions.push(event.text));
  return receiver;
}

const bolt = appWith({});
const boltWithoutVerification = appWith({ signatureVerification: false, endpoints: "/with-time-of-receipt" });

export function service(request, response) {
  if (request.url !== "/with-time-of-receipt") return bolt.requestListener(request, response);
  // Bolt compares the signed time with the present time, so this service verifies the signature itself. A relayed request has
  // no time of receipt. Never pass `NaN`: the function would accept any age.
  const header = request.headers["surehook-received-at"];
  const isValid = isValidSlackRequest({
    signingSecret,
    body: request.body,
    headers: {
      "x-slack-signature": request.headers["x-slack-signature"],
      "x-slack-request-timestamp": Number(request.headers["x-slack-request-timestamp"]),
    },
    nowMilliseconds: header ? Date.parse(header) : undefined,
  });
  if (!isValid) return response.writeHead(400).end("wrong signature");
  boltWithoutVerification.requestListener(request, response);
}
