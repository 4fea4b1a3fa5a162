// What a frontend wrote against the original API, with the browser's own EventSource. It works as it is.

import { useEffect, useState } from "react";

interface ServerMessage {
  event?: string;
  timestamp?: string;
}

export function Original({ url }: { url: string }) {
  const [connected, setConnected] = useState(false);
  const [lastHeartbeat, setLastHeartbeat] = useState<string | null>(null);
  const [events, setEvents] = useState<string[]>([]);

  useEffect(() => {
    const eventSource = new EventSource(url);
    eventSource.onopen = () => setConnected(true);
    eventSource.onmessage = (event: MessageEvent<string>) => {
      const data = JSON.parse(event.data) as ServerMessage;
      switch (data.event) {
        case "connected":
          setConnected(true);
          break;
        case "heartbeat":
          setLastHeartbeat(data.timestamp ?? null);
          break;
        default:
          setEvents((old) => [...old, event.data].slice(-100));
      }
    };
    eventSource.onerror = () => setConnected(false);
    return () => eventSource.close();
  }, [url]);

  return (
    <section id="original">
      <h2>EventSource</h2>
      <p>
        {connected ? "connected" : "disconnected"}, heartbeat: {lastHeartbeat ?? "none yet"}
      </p>
      <ul>
        {events.map((data, number) => (
          <li key={number}>{data}</li>
        ))}
      </ul>
    </section>
  );
}
