import { useState } from "react";
import { useSSE } from "./useSSE";

export function WithHook({ url }: { url: string }) {
  const [topic, setTopic] = useState("");
  const { state, lastHeartbeat, messages, resets } = useSSE(url, {
    topics: topic ? [topic] : [],
    events: ["created", "paid"],
  });

  return (
    <section id="hook" aria-labelledby="hook-title">
      <h2 id="hook-title">useSSE</h2>
      <p className="status" data-open={state === "open"}>
        {state}, heartbeat: {lastHeartbeat ?? "none yet"}, resets: {resets}
      </p>
      <label className="filter">
        Topic <input value={topic} onChange={(event) => setTopic(event.target.value)} placeholder="all" />
      </label>
      <ul aria-label="Events, newest first">
        {[...messages].reverse().map(({ id, type, topic, data }) => (
          <li key={id}>
            <span className="type">{type}</span> <span className="topic">{[topic].flat().join(", ")}</span>{" "}
            <code>{JSON.stringify(data)}</code>
          </li>
        ))}
      </ul>
    </section>
  );
}
