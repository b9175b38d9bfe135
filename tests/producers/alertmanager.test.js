// Alertmanager: the producer is the server of Debian's package.

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { alertmanager, needs, root } from "./debian.js";
import { startDownstream, startLossyProxy } from "./downstream.js";
import { start, until } from "./processes.js";
import { get, newFolder, onEachDatabase, post } from "./surehook.js";

/** Starts an Alertmanager that sends its notifications to `url`, and repeats them. */
async function startAlertmanager(t, url, repetition) {
  const folder = newFolder();
  writeFileSync(
    `${folder}/alertmanager.yml`,
    `route: {receiver: surehook, group_wait: 0s, group_interval: ${repetition}, repeat_interval: ${repetition}}
receivers: [{name: surehook, webhook_configs: [{url: "${url}/webhooks/alerts"}]}]`,
  );
  const inside = folder.slice(root.length);
  const options = [`--config.file=${inside}/alertmanager.yml`, `--storage.path=${inside}/data`];
  const listen = ["--web.listen-address=127.0.0.1:0", "--cluster.listen-address="];
  const ready = /msg="Listening on" address=(?<address>\S+)/;
  const program = await start([...alertmanager, ...options, ...listen], { ready });
  t.after(() => program.stop());
  return `http://${program.ready.groups.address}`;
}

const fire = async (url, alert) => {
  const alerts = JSON.stringify([{ labels: { alertname: "DiskFull", instance: "db-1" }, ...alert }]);
  const answer = await post(`${url}/api/v2/alerts`, { "content-type": "application/json" }, alerts);
  assert.equal(answer.status, 200, answer.body);
};

const sources = (url) => `[sources.alerts]\nproducer = "alertmanager"\ndestination = "${url}/alerts"\n`;

const accept = (_, response) => response.writeHead(204).end();

onEachDatabase(
  "Alertmanager: each notification of an alert arrives, also with the bytes of an earlier one",
  async (t, surehook) => {
    const downstream = await startDownstream(t, accept);
    const service = await surehook(sources(downstream.url));
    const server = await startAlertmanager(t, service.url, "1s");

    await fire(server, {});

    await until("three notifications", () => downstream.received.length >= 3);
    const [first, ...others] = downstream.received;
    const { status, alerts } = JSON.parse(first.rawBody);
    assert.equal(status, "firing");
    assert.equal(alerts[0].labels.alertname, "DiskFull");
    for (const other of others)
      assert.ok(other.rawBody.equals(first.rawBody), "a repeated notification has the same bytes");
    const ids = downstream.received.map(({ headers }) => headers["surehook-event-id"]);
    assert.equal(new Set(ids).size, ids.length, "each notification is an event");

    await fire(server, { endsAt: new Date().toISOString() });

    const isResolved = ({ rawBody }) => JSON.parse(rawBody).status === "resolved";
    await until("the end of the alert", () => downstream.received.some(isResolved));
    const metrics = (await get(`${server}/metrics`)).body;
    assert.match(metrics, /^alertmanager_notifications_failed_total\{integration="webhook"\} 0$/m);
  },
  needs(alertmanager),
);

onEachDatabase(
  "Alertmanager: the retry after a lost response is another event",
  async (t, surehook) => {
    const downstream = await startDownstream(t, accept);
    const service = await surehook(sources(downstream.url));
    const proxy = await startLossyProxy(t, service.url);
    const server = await startAlertmanager(t, proxy.url, "1h");

    await fire(server, {});

    await until("both notifications", () => proxy.passed.length === 2 && downstream.received.length === 2);
    const [lost, retry] = proxy.passed;
    assert.deepEqual([lost.answer.status, retry.answer.status], [202, 202]);
    assert.equal(retry.body, lost.body);
    assert.notEqual(retry.answer.headers["surehook-event-id"], lost.answer.headers["surehook-event-id"]);
  },
  needs(alertmanager),
);
