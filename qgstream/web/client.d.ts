// Types of client.js, the browser's half of qgstream. How to use it: docs/javascript.md.

/** An event, or a message of the server's own. `data` is what was published, as text. */
export class StreamEvent<T = unknown> extends MessageEvent<string> {
  constructor(type: string, init?: MessageEventInit<string> & {topic?: string | string[] | null; event?: string | null});
  /** `data` parsed as JSON, when it is asked for. Throws a `SyntaxError` for a string that is none. */
  readonly json: T;
  /** What it was published to; null for the server's own messages. */
  readonly topic: string | string[] | null;
  /** The type that it was published with; null without one. */
  readonly event: string | null;
}

/** `connecting` (or asking for a token), `open`, `waiting` for the next try, or `closed` by `close()`. */
export type State = "connecting" | "open" | "waiting" | "closed";

/**
 * Why it waits. `closing` and `rejected`: the server said so, with a `reason` and when to come back. `lost`: the
 * connection broke. `unreachable`: there was no answer. `refused`: the answer was no stream; `status` is its status, or
 * null if this page may not read it. `silent`: heartbeats, or the answer, did not come. `token`: the `token` function
 * failed; `message` says how.
 */
export type Why = "closing" | "rejected" | "lost" | "unreachable" | "refused" | "silent" | "token";

export class StateEvent extends Event {
  constructor(type: string, init: {state: State} & Partial<Pick<StateEvent, "why" | "reason" | "status" | "message" | "waitMs">>);
  readonly state: State;
  readonly why: Why | null;
  readonly reason: string | null;
  readonly status: number | null;
  readonly message: string | null;
  /** Until the next try; null where only the browser knows it. */
  readonly waitMs: number | null;
}

interface Own<Name extends string> {
  event: Name;
  /** ISO 8601, by the server's clock. */
  timestamp: string;
}
/** First on every connection. `complete`: everything since the position follows. `reset`: a `reset` follows. */
export interface Connected extends Own<"connected"> {
  replay: "none" | "complete" | "reset";
  /** What the stream listens to, sorted, the first 64 of them; `["*"]` is every topic. */
  topics: string[];
  /** Parameters of the stream's URL that the server does not know. */
  ignored?: string[];
}
export type Heartbeat = Own<"heartbeat">;
/** Events were missed: load your state anew. Live events follow. */
export interface Reset extends Own<"reset"> {
  reason: "too_old" | "unknown_id" | "epoch_changed";
}
/** The server ends the connection. The stream comes back. */
export interface Closing extends Own<"closing"> {
  reason: string;
}
/** The server has no place now. The stream comes back. */
export interface Rejected extends Own<"rejected"> {
  reason: string;
}

export interface StreamEventMap {
  connected: StreamEvent<Connected>;
  heartbeat: StreamEvent<Heartbeat>;
  reset: StreamEvent<Reset>;
  closing: StreamEvent<Closing>;
  rejected: StreamEvent<Rejected>;
  state: StateEvent;
  /** Without a type, or with one that means something here: the names above, `open` and `error`. */
  message: StreamEvent;
}

export interface StreamOptions {
  /** Names, or prefixes ending in `*`. None are every public topic. */
  topics?: readonly string[];
  /** A position to go on from, or `earliest`. */
  lastEventId?: string;
  /** `latest`: begin with the newest event of each topic when there is nothing to resume. */
  replay?: "latest";
  /** Send cookies to another origin. */
  withCredentials?: boolean;
  /** Gives a token or a key. Called before the first connection, and again when the server does not take the last. */
  token?: () => string | Promise<string>;
  /**
   * One connection for all tabs (true). Tabs with another string, say the name of the user, have another one. Without a
   * SharedWorker, and with `lastEventId` or `replay`, the stream has a connection of its own whatever this says.
   */
  shared?: boolean | string;
  /** A module of this page's origin that imports client.js, to be run as the SharedWorker. */
  worker?: string | URL;
  /** The first wait after a failure and the longest, in milliseconds (3000, 30000). Each is drawn from its upper half. */
  backoffMs?: readonly [first: number, max: number];
}

type Listener<E extends Event> = ((event: E) => void) | {handleEvent(event: E): void} | null;

/** A stream of a qgstream server. It connects by itself, and goes on until `close()`. */
export class Stream extends EventTarget {
  constructor(url: string | URL, options?: StreamOptions);
  readonly url: string;
  readonly topics: string[];
  readonly state: State;
  /** The position: what to give as the option of this name to go on from here. */
  readonly lastEventId: string;
  /** Whether the connection is one that other tabs share, or could. */
  readonly isShared: boolean;
  /** Listen to other topics from the position of now. */
  setTopics(topics: readonly string[]): void;
  close(): void;
  addEventListener<K extends keyof StreamEventMap>(
    type: K, listener: Listener<StreamEventMap[K]>, options?: boolean | AddEventListenerOptions): void;
  addEventListener<T = unknown>(
    type: string, listener: Listener<StreamEvent<T>>, options?: boolean | AddEventListenerOptions): void;
  removeEventListener<K extends keyof StreamEventMap>(
    type: K, listener: Listener<StreamEventMap[K]>, options?: boolean | EventListenerOptions): void;
  removeEventListener<T = unknown>(
    type: string, listener: Listener<StreamEvent<T>>, options?: boolean | EventListenerOptions): void;
}
