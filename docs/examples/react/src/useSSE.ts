// A stream as state of a component. It opens nothing on a server (SSR), and one connection in StrictMode.

import { useEffect, useRef, useState } from "react";
import { Stream, type Heartbeat, type State, type StreamEvent, type StreamOptions } from "qgstream-client";

/** An event as a component shows it. `data` is parsed, or the text itself where that is no JSON. */
export interface Message<T = unknown> {
  id: string;
  type: string;
  topic: string | string[] | null;
  data: T;
}

export interface SSE<T = unknown> {
  state: State;
  connected: boolean;
  /** When the server last said that it lives, ISO 8601. */
  lastHeartbeat: string | null;
  /** The newest `keep` events, oldest first. */
  messages: Message<T>[];
  /** How often events were missed. Load your state anew when it changes. */
  resets: number;
}

export interface UseSSEOptions extends StreamOptions {
  /** The types to listen for; events without one come in any case. */
  events?: readonly string[];
  /** How many messages to keep (100). */
  keep?: number;
  /** Called for each event, for those who keep none. */
  onEvent?: (event: StreamEvent) => void;
}

const NOTHING: SSE<never> = { state: "connecting", connected: false, lastHeartbeat: null, messages: [], resets: 0 };

function parsed(event: StreamEvent): unknown {
  try {
    return event.json;
  } catch {
    return event.data;
  }
}

export function useSSE<T = unknown>(url: string, options: UseSSEOptions = {}): SSE<T> {
  const [sse, setSSE] = useState<SSE<T>>(NOTHING);
  const stream = useRef<Stream | null>(null);
  const asked = useRef("");
  // The newest of what may change without a new stream: functions are new at each rendering.
  const newest = useRef(options);
  useEffect(() => {
    newest.current = options;
  });

  // Arrays too, so they are compared by what is in them.
  const topics = JSON.stringify(options.topics ?? []);
  const types = JSON.stringify(options.events ?? []);
  const { shared = true, replay, lastEventId, withCredentials = false } = options;
  const worker = options.worker?.toString();
  const hasToken = options.token !== undefined;

  useEffect(() => {
    setSSE(NOTHING);
    const opened = new Stream(url, {
      shared,
      withCredentials,
      topics: newest.current.topics ?? [],
      ...(replay && { replay }),
      ...(lastEventId && { lastEventId }),
      ...(worker && { worker }),
      ...(newest.current.backoffMs && { backoffMs: newest.current.backoffMs }),
      ...(hasToken && { token: () => newest.current.token?.() ?? "" }),
    });
    stream.current = opened;
    asked.current = JSON.stringify(newest.current.topics ?? []);

    const add = (event: StreamEvent) => {
      newest.current.onEvent?.(event);
      const keep = newest.current.keep ?? 100;
      const { lastEventId: id, type, topic } = event;
      const message = { id, type: event.event ?? type, topic, data: parsed(event) as T };
      setSSE((old) => ({ ...old, messages: keep > 0 ? [...old.messages, message].slice(-keep) : [] }));
    };
    for (const type of new Set(["message", ...(JSON.parse(types) as string[])])) opened.addEventListener(type, add);
    opened.addEventListener("heartbeat", (event: StreamEvent<Heartbeat>) => {
      const lastHeartbeat = event.json.timestamp;
      setSSE((old) => ({ ...old, lastHeartbeat }));
    });
    opened.addEventListener("reset", () => setSSE((old) => ({ ...old, resets: old.resets + 1 })));
    opened.addEventListener("state", ({ state }) => {
      // Closed is what a component that is gone has no use for.
      if (state !== "closed") setSSE((old) => ({ ...old, state, connected: state === "open" }));
    });
    return () => {
      stream.current = null;
      opened.close();
    };
  }, [url, types, shared, replay, lastEventId, withCredentials, worker, hasToken]);

  // Other topics go on from the position of the old ones.
  useEffect(() => {
    if (asked.current === topics) return;
    asked.current = topics;
    stream.current?.setTopics(JSON.parse(topics) as string[]);
  }, [topics]);

  return sse;
}
