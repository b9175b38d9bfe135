// A service that verifies Stripe's signatures with Stripe's library.

import Stripe from "stripe";

const { webhooks } = new Stripe("sk_test_not_used");
export const secret = "whsec_surehook_test";

export function service(request, response) {
  // A service that is down at first.
  if (request.headers["surehook-attempt"] === "1") return response.writeHead(503).end();
  // Without the time of receipt, the library uses the present time. Never pass it `NaN`: it would accept any age.
  const header = request.headers["surehook-received-at"];
  const receivedAt = request.url === "/with-time-of-receipt" && header ? Date.parse(header) : undefined;
  try {
    const signature = request.headers["stripe-signature"];
    const event = webhooks.constructEvent(request.rawBody, signature, secret, undefined, undefined, receivedAt);
    response.writeHead(200).end(`verified ${event.id}`);
  } catch (error) {
    response.writeHead(400).end(error.message);
  }
}
