// Publishes from Node.js 18 or newer, with nothing but what is in it:
//
//     node docs/examples/publishers/publish.mjs
//
// Copy `publish` into your program. The key that it makes is the same in each try, so the event is published once.
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

const EVENTS = `${process.env.EVENTS_URL ?? "http://localhost:8000"}/events`;
const KEY = process.env.EVENTS_KEY ?? "dev";

/** Resolves to the answer, {id, subscribers}, when the event is in the log. Rejects when it is refused or too late. */
export async function publish(topic, data, { event, idempotencyKey = randomUUID(), deadlineMs = 30_000 } = {}) {
  const deadline = Date.now() + deadlineMs;
  const request = {
    method: "POST",
    headers: { "Authorization": `Bearer ${KEY}`, "Content-Type": "application/json" },
    body: JSON.stringify({ topic, data, event, idempotency_key: idempotencyKey }),
  };
  for (let waitMs = 250; ; waitMs = Math.min(2 * waitMs, 10_000)) {
    let problem, toldMs = 0;
    try {
      const answer = await fetch(EVENTS, { ...request, signal: AbortSignal.timeout(10_000) });
      const text = await answer.text();
      if (answer.ok) return JSON.parse(text);
      problem = `${answer.status} ${text}`;
      // The same request gets the same answer.
      if (answer.status !== 429 && answer.status < 500) deadlineMs = 0;
      toldMs = 1000 * Number(answer.headers.get("Retry-After") ?? 0);
    } catch (error) {
      problem = error.cause ?? error; // no answer
    }
    // At random, so that many publishers do not come back at once.
    const pauseMs = Math.max(waitMs, toldMs) * (1 + Math.random() / 4);
    if (deadlineMs === 0 || Date.now() + pauseMs > deadline) throw new Error(`not published: ${problem}`);
    await sleep(pauseMs);
  }
}

const { id } = await publish("orders", { order: 7 }, { event: "created" });
console.log(id);
