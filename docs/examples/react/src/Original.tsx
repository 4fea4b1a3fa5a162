// What a frontend wrote against the original API, with the browser's own EventSource. It works as it is.

import { useEffect, useState } from "react";

interface ServerMessage {
  event?: string;
  timestamp?: string;
}

/** What is published may be any text. */
function parsed(text: string): ServerMessage {
  try {
    return Object(JSON.parse(text)) as ServerMessage;
  } catch {
    return {};
  }
}

export function Original({ url }: { url: string }) {
  const [connected, setConnected] = useState(false);
  const [lastHeartbeat, setLastHeartbeat] = useState<string | null>(null);
  const [events, setEvents] = useState<{ id: string; data: string }[]>([]);

  useEffect(() => {
    const eventSource = new EventSource(url);
    eventSource.onopen = () => setConnected(true);
    eventSource.onmessage = (event: MessageEvent<string>) => {
      const data = parsed(event.data);
      switch (data.event) {
        case "connected":
          setConnected(true);
          break;
        case "heartbeat":
          setLastHeartbeat(data.timestamp ?? null);
          break;
        default:
          setEvents((old) => [{ id: event.lastEventId, data: event.data }, ...old].slice(0, 100));
      }
    };
    eventSource.onerror = () => setConnected(false);
    return () => eventSource.close();
  }, [url]);

  return (
    <section id="original" aria-labelledby="original-title">
      <h2 id="original-title">EventSource</h2>
      <p className="status" data-open={connected}>
        {connected ? "connected" : "disconnected"}, heartbeat: {lastHeartbeat ?? "none yet"}
      </p>
      <ul aria-label="Events, newest first">
        {events.map(({ id, data }) => (
          <li key={id}>
            <code>{data}</code>
          </li>
        ))}
      </ul>
    </section>
  );
}
