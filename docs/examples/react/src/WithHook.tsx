import { useState } from "react";
import { useSSE } from "./useSSE";

export function WithHook({ url }: { url: string }) {
  const [topic, setTopic] = useState("");
  const { state, lastHeartbeat, messages, resets } = useSSE(url, {
    topics: topic ? [topic] : [],
    events: ["created", "paid"],
  });

  return (
    <section id="hook">
      <h2>useSSE</h2>
      <p>
        {state}, heartbeat: {lastHeartbeat ?? "none yet"}, resets: {resets}
      </p>
      <label>
        Topic <input value={topic} onChange={(event) => setTopic(event.target.value)} placeholder="all" />
      </label>
      <ul>
        {messages.map(({ id, type, data }) => (
          <li key={id}>
            {type} {JSON.stringify(data)}
          </li>
        ))}
      </ul>
    </section>
  );
}
