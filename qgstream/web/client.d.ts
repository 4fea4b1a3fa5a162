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

/**
 * `connecting` (or asking for a token), `open`, `waiting` for the next try, or `closed`: by `close()`, by the `signal`,
 * or because `isFatal` said so.
 */
export type State = "connecting" | "open" | "waiting" | "closed";

/**
 * Why it waits. `closing` and `rejected`: the server said so, with a `reason` and when to come back. `lost`: the
 * connection broke. `unreachable`: there was no answer, or none that this page may read. `refused`: the answer was no
 * stream; `status` is its status. `silent`: heartbeats, or the answer, did not come. `token`: the `token` function
 * failed; `message` says how.
 */
export type Why = "closing" | "rejected" | "lost" | "unreachable" | "refused" | "silent" | "token";

export class StateEvent extends Event {
  constructor(type: string, init: {state: State} & Partial<Omit<StateEvent, keyof Event>>);
  readonly state: State;
  /** Null unless the stream waits, or was closed because `isFatal` said so. */
  readonly why: Why | null;
  readonly reason: string | null;
  readonly status: number | null;
  /** The server's code for a refusal, such as `missing_credentials`; null for an answer that is not this server's. */
  readonly code: string | null;
  readonly message: string | null;
  /** Milliseconds until the next try. */
  readonly waitMs: number | null;
  /** How many tries have failed one after the other; 0 again after a stream of ten seconds. */
  readonly failures: number;
}

interface Own<Name extends string> {
  event: Name;
  /** ISO 8601, by the server's clock. */
  timestamp: string;
}
/** First on every connection. `complete`: everything since the position follows. `reset`: a `reset` follows. */
export interface Connected extends Own<"connected"> {
  replay: "none" | "complete" | "reset";
  /** What the stream listens to, sorted; `["*"]` is every topic. */
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

/** What a stream says itself, whatever is published. */
export interface StreamEventMap {
  connected: StreamEvent<Connected>;
  heartbeat: StreamEvent<Heartbeat>;
  reset: StreamEvent<Reset>;
  closing: StreamEvent<Closing>;
  rejected: StreamEvent<Rejected>;
  state: StateEvent;
  /** It is connected, as an EventSource says it. */
  open: Event;
  /** It waits, or is closed because `isFatal` said so, as an EventSource says it. */
  error: Event;
  /** Without a type, or with one that means something here: the names in this list. */
  message: StreamEvent;
  /** Everything that was published, of every type: the type is in `event`. */
  "*": StreamEvent;
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
   * Who shares one connection. True (the default): all tabs of this origin, if the stream has neither a `token` nor
   * cookies; else nobody. A string: those that give the same one, say the name of the user. False: nobody.
   */
  share?: boolean | string;
  /** The first wait after a failure and the longest, in milliseconds (3000, 30000). Each is drawn from its upper half. */
  backoffMs?: readonly [first: number, max: number];
  /** Closes the stream when it aborts. */
  signal?: AbortSignal;
  /** Whether to give up instead of waiting for the next try. Called whenever the stream is about to wait. */
  isFatal?: (state: StateEvent) => boolean;
}

type Listener<E extends Event> = ((event: E) => void) | {handleEvent(event: E): void} | null;

/**
 * A stream of a qgstream server. It connects by itself, and goes on until `close()`.
 *
 * `Events` says what is published: the data of each type, as `Stream<{created: Order}>`.
 */
export class Stream<Events extends object = Record<never, never>> extends EventTarget
  implements AsyncIterable<StreamEvent<unknown>> {
  constructor(url: string | URL, options?: StreamOptions);
  readonly url: string;
  readonly withCredentials: boolean;
  readonly topics: string[];
  readonly state: State;
  /** As an EventSource has it: 0 (`connecting`, `waiting`), 1 (`open`) or 2 (`closed`). */
  readonly readyState: 0 | 1 | 2;
  /** The position: what to give as the option of this name to go on from here. */
  readonly lastEventId: string;
  /** Whether the connection is one that other tabs share, or could. */
  readonly isShared: boolean;
  onopen: ((event: Event) => void) | null;
  onmessage: ((event: StreamEvent<Events extends {message: infer Data} ? Data : unknown>) => void) | null;
  onerror: ((event: Event) => void) | null;
  /** Listen to other topics from the position of now. */
  setTopics(topics: readonly string[]): void;
  /** Connect anew, without waiting, from the position of now. */
  reconnect(): void;
  close(): void;
  /**
   * What is published from now on, and each `reset`, until the stream is closed. To leave the loop does not close it.
   * Throws a `RangeError` when the loop is 10000 events behind.
   */
  [Symbol.asyncIterator](): AsyncGenerator<StreamEvent<unknown>, void, undefined>;

  addEventListener<K extends keyof Events & string>(
    type: K, listener: Listener<StreamEvent<Events[K]>>, options?: boolean | AddEventListenerOptions): void;
  addEventListener<K extends keyof StreamEventMap>(
    type: K, listener: Listener<StreamEventMap[K]>, options?: boolean | AddEventListenerOptions): void;
  addEventListener<T = unknown>(
    type: string, listener: Listener<StreamEvent<T>>, options?: boolean | AddEventListenerOptions): void;
  removeEventListener<K extends keyof Events & string>(
    type: K, listener: Listener<StreamEvent<Events[K]>>, options?: boolean | EventListenerOptions): void;
  removeEventListener<K extends keyof StreamEventMap>(
    type: K, listener: Listener<StreamEventMap[K]>, options?: boolean | EventListenerOptions): void;
  removeEventListener<T = unknown>(
    type: string, listener: Listener<StreamEvent<T>>, options?: boolean | EventListenerOptions): void;
}
