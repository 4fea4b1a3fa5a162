// A stream as state of a component. It opens nothing on a server (SSR), and one connection in StrictMode.
//
// From the bottom up: a Line is a stream and everything that listens to it, shared by all components that ask for the
// same. A View is what one component sees, and where it stands: a component that was hidden (<Activity>), or whose
// options have changed, goes on where it was.

import { useCallback, useEffect, useState, useSyncExternalStore } from "react";
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
  /** Called for each event at once, while the component renders at most once for each frame. */
  onEvent?: (event: StreamEvent) => void;
}

const NOTHING: SSE<never> = { state: "connecting", connected: false, lastHeartbeat: null, messages: [], resets: 0 };
/** A hidden page has no frames. */
const FRAME_MS = 250;

function parsed(event: StreamEvent): unknown {
  try {
    return event.json;
  } catch {
    return event.data;
  }
}

/** What a component asks for, in a form that can be compared. */
interface Wanted {
  /** The beginning: with another one, nothing of the old one is of interest. */
  start: string;
  /** Everything but the topics: with another one, the stream is made anew from the old position. */
  base: string;
  topics: string;
  /** Whether another component may use the same stream: one that begins at a place of its own may not. */
  isShareable: boolean;
}

const lines = new Map<string, Line>();
const keyOf = ({ base, topics }: Wanted): string => `${base} ${topics}`;

class Line {
  readonly views = new Set<View>();
  readonly stream: Stream;
  wanted: Wanted;
  isClosed = false;
  #types = new Set<string>();

  constructor(url: string, options: StreamOptions, wanted: Wanted) {
    this.wanted = wanted;
    this.stream = new Stream(url, options);
    this.listen(["message"]);
    this.stream.addEventListener("heartbeat", (event: StreamEvent<Heartbeat>) => {
      for (const view of this.views) view.change({ lastHeartbeat: event.json.timestamp });
    });
    this.stream.addEventListener("reset", () => {
      for (const view of this.views) view.change({ resets: view.next.resets + 1 });
    });
    this.stream.addEventListener("state", ({ state }) => {
      for (const view of this.views) view.change({ state, connected: state === "open" });
    });
  }

  listen(types: Iterable<string>): void {
    for (const type of types) {
      if (this.#types.has(type)) continue;
      this.#types.add(type);
      this.stream.addEventListener(type, (event: StreamEvent) => {
        for (const view of [...this.views]) view.hear(type, event);
      });
    }
  }

  /** Let others find it, under what it gives now. */
  offer(wanted: Wanted): void {
    this.#withdraw();
    this.wanted = wanted;
    if (wanted.isShareable && !lines.has(keyOf(wanted))) lines.set(keyOf(wanted), this);
  }

  #withdraw(): void {
    if (lines.get(keyOf(this.wanted)) === this) lines.delete(keyOf(this.wanted));
  }

  /** Not at once: the same component, or the next one, may want it in the same moment. */
  leave(view: View): void {
    this.views.delete(view);
    queueMicrotask(() => {
      if (this.views.size > 0 || this.isClosed) return;
      this.isClosed = true;
      this.#withdraw();
      this.stream.close();
    });
  }
}

class View {
  /** What comes with the next frame. */
  next: SSE = NOTHING;
  options: UseSSEOptions = {};
  #shown: SSE = NOTHING;
  #line: Line | null = null;
  #start = "";
  #position = "";
  #types = new Set<string>();
  #render: (() => void) | null = null;
  #frame = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  readonly shown = (): SSE => this.#shown;

  listen(types: readonly string[]): void {
    this.#types = new Set(["message", ...types]);
    this.#line?.listen(this.#types);
  }

  join(url: string, wanted: Wanted, render: () => void): () => void {
    if (this.#start !== wanted.start) {
      this.#start = wanted.start;
      this.#position = "";
      this.#line = null;
      this.next = NOTHING;
    }
    this.#render = render;
    const line = this.#find(url, wanted);
    this.#line = line;
    line.views.add(this);
    line.listen(this.#types);
    const { state } = line.stream;
    this.change({ state, connected: state === "open" });
    return () => {
      // Here it goes on, on this line or on another one.
      this.#position = line.stream.lastEventId;
      this.#render = null;
      cancelAnimationFrame(this.#frame);
      clearTimeout(this.#timer);
      this.#timer = undefined;
      line.leave(this);
    };
  }

  #find(url: string, wanted: Wanted): Line {
    // A line that stands elsewhere has given to others what this component has not got.
    const isHere = (line: Line) => !this.#position || line.stream.lastEventId === this.#position;
    const old = this.#line;
    if (old && !old.isClosed && old.wanted.base === wanted.base && isHere(old)) {
      if (old.wanted.topics === wanted.topics) return old;
      if (old.views.size === 0) {
        // Nobody else has it: other topics from the same position.
        old.stream.setTopics(JSON.parse(wanted.topics) as string[]);
        old.offer(wanted);
        return old;
      }
    }
    const found = wanted.isShareable ? lines.get(keyOf(wanted)) : undefined;
    if (found && isHere(found)) return found;
    const { events, keep, onEvent, token, ...options } = this.options;
    const line: Line = new Line(
      url,
      {
        ...options,
        topics: JSON.parse(wanted.topics) as string[],
        ...(this.#position && { lastEventId: this.#position }),
        ...(token && { token: () => [...line.views].at(-1)?.options.token?.() ?? "" }),
      },
      wanted,
    );
    line.offer(wanted);
    return line;
  }

  hear(type: string, event: StreamEvent): void {
    if (!this.#types.has(type)) return;
    this.options.onEvent?.(event);
    const { lastEventId: id, topic } = event;
    const message = { id, type: event.event ?? type, topic, data: parsed(event) };
    const keep = this.options.keep ?? 100;
    this.change({ messages: keep > 0 ? [...this.next.messages, message].slice(-keep) : [] });
  }

  /** One rendering for everything until the next frame. */
  change(part: Partial<SSE>): void {
    this.next = { ...this.next, ...part };
    if (this.#timer !== undefined) return;
    const show = () => {
      cancelAnimationFrame(this.#frame);
      clearTimeout(this.#timer);
      this.#timer = undefined;
      this.#shown = this.next;
      this.#render?.();
    };
    this.#frame = requestAnimationFrame(show);
    this.#timer = setTimeout(show, FRAME_MS);
  }
}

export function useSSE<T = unknown>(url: string, options: UseSSEOptions = {}): SSE<T> {
  const [view] = useState(() => new View());
  // The newest of what may change without a new stream: functions are new at each rendering.
  useEffect(() => {
    view.options = options;
  });

  const { events = [], keep, onEvent, token, topics = [], ...rest } = options;
  // Arrays too are new at each rendering, so they are compared by what is in them.
  const types = JSON.stringify(events);
  useEffect(() => {
    view.listen(JSON.parse(types) as string[]);
  }, [view, types]);

  const wanted = JSON.stringify({
    start: JSON.stringify([url, rest.lastEventId, rest.replay]),
    base: JSON.stringify([url, rest, token !== undefined]),
    topics: JSON.stringify([...new Set(topics)].sort()),
    isShareable: !rest.lastEventId && !rest.replay,
  } satisfies Wanted);
  const join = useCallback(
    (render: () => void) => view.join(url, JSON.parse(wanted) as Wanted, render),
    [view, url, wanted],
  );

  return useSyncExternalStore(join, view.shown, () => NOTHING) as SSE<T>;
}
