// The browser's half of qgstream: an EventSource that does not give up, one for all tabs of an origin.
// How to use it: docs/javascript.md. Types: client.d.ts. No dependencies, and importing it does nothing.
//
// From the bottom up: a Line is one EventSource and everything that brings it back. It runs in a SharedWorker, where a
// Party is the tabs that share it, or in the page itself when there is no such worker. A Stream is what the page has.

// Messages of the server's own (docs/http-interface.md). With `envelope=1` they are the ones without an envelope, so
// nobody can publish a false one.
const OWN = ["connected", "heartbeat", "reset", "closing", "rejected"];
// Event types that mean something here or to EventSource itself: published ones arrive as `message`.
const RESERVED = new Set([...OWN, "state", "open", "error", "message"]);

const TICK_MS = 1000;
const ANSWER_MS = 20_000;     // for the token and the first message: a seventh HTTP/1.1 connection waits for ever
const PROMISED_MS = 300_000;  // after a `retry:` of the server's, which nobody but the browser knows
const SILENT_MS = 2000;       // at least, however short the heartbeats
const ASLEEP_MS = 120_000;    // between two ticks. A hidden tab has one a minute
const STEADY_MS = 10_000;     // a stream that lasts this long has forgotten the failures before it
const HELLO_MS = 5000;        // for a SharedWorker to start

// How the server writes it: the data stands in it as it was published.
const TEXT = String.raw`"(?:[^"\\]|\\.)*"`;
const ENVELOPE = new RegExp(String.raw`^\{"id": *${TEXT}, *"topic": *(${TEXT}|\[(?:${TEXT},? *)+\]), *"event": *(${TEXT}|null), *"data": *`);

function unwrap(text) {
  const found = ENVELOPE.exec(text);
  if (found === null) return null;
  const data = text.slice(found[0].length, -1);
  return {topic: JSON.parse(found[1]), event: JSON.parse(found[2]), data: data.startsWith('"') ? JSON.parse(data) : data};
}

/** `name` or `prefix*`; no patterns at all are every topic. */
function covers(patterns, topic) {
  return patterns.length === 0 || patterns.some((pattern) =>
    pattern === topic || (pattern.endsWith("*") && topic.startsWith(pattern.slice(0, -1))));
}

// No topic has a line end in it.
const same = (some, others) => some.join("\n") === others.join("\n");

/** One EventSource at a time, for as long as it takes. `say` gets what happens, `askToken` gives a token. */
class Line {
  lastEventId;
  #settings; #say; #askToken;
  #types = new Set();
  #topics;
  #asked = [];
  #source = null;
  #turn = 0;          // what was begun in an earlier turn and comes back late is of no interest
  #token = null;
  #state = null; #word = null;
  #failures = 0;
  #timer; #ticking; #tickedAt; #heardAt; #openedAt;
  #beatAt = null; #beatMs = null;
  #online = () => { if (this.#state === "waiting" && this.#source === null) this.open(); };

  constructor(settings, say, askToken) {
    this.#settings = settings;
    this.#topics = settings.topics;
    this.#say = say;
    this.#askToken = askToken;
    this.lastEventId = settings.lastEventId;
    this.#tickedAt = Date.now();
    this.#ticking = setInterval(() => this.#tick(), TICK_MS);
    globalThis.addEventListener?.("online", this.#online);
  }

  /** Connect now, where the last connection ended. */
  async open() {
    this.#drop();
    const turn = this.#turn;
    this.#heardAt = Date.now();
    this.#tell("connecting");
    if (this.#settings.hasToken && this.#token === null) {
      try {
        const token = await this.#askToken();
        if (turn !== this.#turn) return;
        this.#token = token;
      } catch (error) {
        if (turn === this.#turn) this.#again({why: "token", message: String(error)});
        return;
      }
    }
    this.#asked = this.#topics;
    const source = this.#source = new EventSource(this.#href(), {withCredentials: this.#settings.withCredentials});
    for (const type of [...RESERVED, ...this.#types]) this.#hear(source, type);
  }

  close() {
    this.#drop();
    clearInterval(this.#ticking);
    globalThis.removeEventListener?.("online", this.#online);
  }

  /** Hear events of this type too: an EventSource drops those that nobody listens for. */
  listen(type) {
    if (RESERVED.has(type) || this.#types.has(type)) return;
    this.#types.add(type);
    if (this.#source) this.#hear(this.#source, type);
  }

  /** Other topics, from the position of the old ones. */
  setTopics(topics) {
    this.#topics = topics;
    // Who waits has a reason to, and asks for the new ones when that is over.
    if (["connecting", "open"].includes(this.#state) && !same(topics, this.#asked)) this.open();
  }

  #drop() {
    this.#turn += 1;
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = this.#word = this.#beatAt = null;
  }

  #href() {
    const {url, replay} = this.#settings;
    const href = new URL(url);
    const query = href.searchParams;
    for (const topic of this.#topics) query.append("topic", topic);
    query.set("envelope", "1");
    // Not the header of this name: an EventSource cannot set one, and it would be preflighted.
    if (this.lastEventId) query.set("last_event_id", this.lastEventId);
    if (replay) query.set("replay", replay);
    if (this.#token !== null) query.set("access_token", this.#token);
    return href;
  }

  #hear(source, type) {
    source.addEventListener(type, (event) => {
      if (source !== this.#source) return;
      // A publication may be of the type `error` or `open`, too.
      if (event instanceof MessageEvent) this.#received(type, event);
      else if (type === "error") this.#failed(source);
    });
  }

  #received(type, {data, lastEventId}) {
    this.#heardAt = Date.now();
    const published = unwrap(data);
    const message = published ? null : JSON.parse(data);
    // A `reset` comes next, and nothing may move past the gap without it: version 0.1 says the position here already.
    if (lastEventId && message?.replay !== "reset") this.lastEventId = lastEventId;
    if (published) this.#say({kind: "event", type: RESERVED.has(type) ? "message" : type, id: lastEventId, ...published});
    else this.#own(message, data);
  }

  #own(message, data) {
    const {event: type, reason} = message;
    if (type === "connected") {
      this.#word = null;
      if (!same(this.#topics, this.#asked)) return this.open();  // they changed while the browser waited
      this.#openedAt = Date.now();
      this.#tell("open");
    }
    this.#say({kind: "own", type, id: this.lastEventId, topic: null, event: null, data});
    if (type === "heartbeat") {
      // By the server's clock: how late one is heard says more about this machine.
      const at = Date.parse(message.timestamp);
      if (this.#beatAt !== null) this.#beatMs = at - this.#beatAt;
      this.#beatAt = at;
    } else if (type === "closing" && reason === "token_expired" && this.#settings.hasToken) {
      this.#token = null;
      this.open();
    } else if (type === "closing" || type === "rejected") {
      this.#word = {why: type, reason};
    }
  }

  async #failed(source) {
    const word = this.#word;
    this.#word = null;
    if (word && source.readyState === EventSource.CONNECTING) {
      // The server has said when: a `retry:` that only the browser has seen, spread over all who were told.
      this.#heardAt = Date.now();
      this.#tell("waiting", word);
      return;
    }
    const wasOpen = this.#state === "open", stopped = source.readyState === EventSource.CLOSED;
    this.#drop();
    if (!stopped) return this.#again({why: wasOpen ? "lost" : "unreachable"});
    // An answer that is no stream stops an EventSource for good, and it does not say which. Ask again to know.
    const turn = this.#turn;
    const status = await this.#probe();
    if (turn !== this.#turn) return;
    if (status === 401 && this.#settings.hasToken) {
      this.#token = null;
      if (this.#failures === 0) {  // the token was good until now
        this.#failures = 1;
        return this.open();
      }
    }
    this.#again({why: "refused", status});
  }

  /** The status of a refusal; null where a page may not read it, and for those that are over when it asks. */
  async #probe() {
    try {
      const answer = await fetch(this.#href(), {
        method: "HEAD", cache: "no-store", credentials: this.#settings.withCredentials ? "include" : "same-origin",
        headers: {Accept: "text/event-stream"}, signal: AbortSignal.timeout(ANSWER_MS),
      });
      return answer.ok ? null : answer.status;  // it would be a stream now, or there was no place for one
    } catch {
      return null;
    }
  }

  /** Nobody said when to come back, so everybody who lost a stream now must not come back together. */
  #again(ending) {
    const [firstMs, maxMs] = this.#settings.backoffMs;
    // Of these somebody has to change something first.
    const mistake = ending.status >= 400 && ending.status < 500 && ![408, 425, 429].includes(ending.status)
      && !(ending.status === 401 && this.#settings.hasToken);
    const ceiling = mistake ? maxMs : Math.min(maxMs, firstMs * 2 ** this.#failures);
    const waitMs = Math.round(ceiling * (0.5 + Math.random() / 2));
    this.#drop();
    this.#failures += 1;
    this.#tell("waiting", {...ending, waitMs});
    this.#timer = setTimeout(() => this.open(), waitMs);
  }

  #tell(state, more = {}) {
    this.#state = state;
    this.#say({kind: "state", state, ...more});
  }

  #tick() {
    const sleptMs = Date.now() - this.#tickedAt;
    this.#tickedAt += sleptMs;
    // After a sleep, what has arrived meanwhile is queued behind this timer: give it its turn first.
    if (sleptMs > 3 * TICK_MS) setTimeout(() => this.#judge(sleptMs > ASLEEP_MS), TICK_MS);
    else this.#judge(false);
  }

  /** A connection can die without a word. */
  #judge(slept) {
    if (this.#state === "open" && Date.now() - this.#openedAt > STEADY_MS) this.#failures = 0;
    if (this.#state === "waiting" && this.#source === null) return;
    const patienceMs = this.#state === "connecting" ? ANSWER_MS
      : this.#state === "waiting" ? PROMISED_MS
      : this.#beatMs !== null ? Math.max(3 * this.#beatMs, SILENT_MS)
      : slept ? ASLEEP_MS : Infinity;  // heartbeats may be comments, which no script sees
    if (Date.now() - this.#heardAt <= patienceMs) return;
    this.#beatMs = null;  // it may have been that they come less often now
    this.#again({why: "silent"});
  }
}

// ---- The worker ----

/** The tabs that share a line. It asks for all of their topics, and gives each its own. */
class Party {
  #members = new Set();
  #line = null;
  #good = null;  // topics that were not refused
  #asked;
  #state = {kind: "state", state: "connecting"};

  get isOver() { return this.#members.size === 0; }

  add(member) {
    this.#members.add(member);
    if (this.#line === null) {
      this.#asked = this.#topics();
      this.#line = new Line({...member.settings, topics: this.#asked}, (said) => this.#heard(said), () => this.#token());
      this.refresh();
      this.#line.open();
      return;
    }
    member.post(this.#state);
    const before = this.#asked;
    this.refresh();
    if (this.#state.state === "open" && same(this.#asked, before)) {
      // It is connected already, and begins where the line is.
      const data = JSON.stringify({event: "connected", timestamp: new Date().toISOString(), replay: "none"});
      member.post(member.own({kind: "own", type: "connected", id: this.#line.lastEventId, topic: null, event: null, data}));
    }
  }

  remove(member) {
    if (!this.#members.delete(member)) return;
    this.refresh();
  }

  /** After a member's topics or types have changed. */
  refresh() {
    if (this.isOver) {
      this.#line?.close();
      this.#line = null;
      return;
    }
    for (const {types} of this.#members) for (const type of types) this.#line.listen(type);
    this.#asked = this.#topics();
    this.#line.setTopics(this.#asked);
  }

  #topics() {
    const all = [...this.#members].map((member) => member.topics);
    return all.some((topics) => topics.length === 0) ? [] : [...new Set(all.flat())].sort();
  }

  #heard(said) {
    if (said.kind === "state") {
      this.#state = said;
      if (said.state === "open") this.#good = this.#asked;
      if (said.why === "refused" && [400, 401, 403].includes(said.status) && this.#part()) return;
    }
    for (const member of this.#members) if (member.wants(said)) member.post(member.own(said));
  }

  /** What one tab asked for was refused: the others go on without it. Whether there are any. */
  #part() {
    const known = ({topics}) => this.#good !== null && topics.every((topic) => covers(this.#good, topic))
      && (topics.length > 0 || this.#good.length === 0);
    const strangers = [...this.#members].filter((member) => !known(member));
    if (strangers.length === 0 || this.#members.size === 1) return false;
    for (const member of strangers) {
      this.#members.delete(member);
      member.post({kind: "alone"});
    }
    this.refresh();
    this.#line?.open();
    return true;
  }

  /** The first token that a tab gives: one that is frozen does not answer. */
  async #token() {
    let problem = new Error("no tab has answered");
    for (const member of [...this.#members]) {
      try {
        return await member.ask(ANSWER_MS / 4);
      } catch (error) {
        problem = error;
      }
    }
    throw problem;
  }
}

/** A tab, as the worker sees it. */
class Member {
  settings; topics; types;
  #port;
  #asked = null;

  constructor(port, {settings, topics, types}) {
    Object.assign(this, {settings, topics, types: new Set(types)});
    this.#port = port;
  }

  post(said) { this.#port.postMessage(said); }

  wants({kind, type, topic}) {
    if (kind !== "event") return true;
    return (type === "message" || this.types.has(type)) && [topic].flat().some((each) => covers(this.topics, each));
  }

  /** The line has the topics of all tabs. A tab is told its own. */
  own(said) {
    if (said.kind !== "own" || said.type !== "connected") return said;
    const topics = this.topics.length === 0 ? ["*"] : [...this.topics].sort();
    return {...said, data: JSON.stringify({...JSON.parse(said.data), topics})};
  }

  ask(patienceMs) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error("a tab has not answered")), patienceMs);
      this.#asked = ({token, error}) => {
        clearTimeout(timer);
        if (error === undefined) resolve(token);
        else reject(new Error(error));
      };
      this.post({kind: "token"});
    });
  }

  answer(given) {
    this.#asked?.(given);
    this.#asked = null;
  }
}

/** This module in a SharedWorker of its own. */
function serve() {
  const parties = new Map();
  // Held for as long as the worker lives: tabs see by it that it does, and under which address.
  const lock = `${workerLock()}${location.href}`;
  const ready = new Promise((resolve) => {
    if (!navigator.locks) return resolve();
    navigator.locks.request(lock, () => new Promise(() => resolve()));
  });

  globalThis.onconnect = ({ports: [port]}) => {
    let member = null, party = null;
    const leave = () => {
      party?.remove(member);
      for (const [key, each] of parties) if (each.isOver) parties.delete(key);
      party = null;
    };
    const join = ({key, tab, ...more}) => {
      member = new Member(port, more);
      party = parties.get(key) ?? new Party();
      parties.set(key, party);
      party.add(member);
      // A tab that crashes says nothing, but it loses its lock.
      if (tab) navigator.locks.request(tab, leave);
    };
    port.onmessage = ({data}) => {
      if (data.join) join(data.join);
      else if (data.token) member.answer(data.token);
      else if (party === null) return;  // it is on its way out
      else if (data.leave) leave();
      else if (data.types) { member.types = new Set(data.types); party.refresh(); }
      else if (data.topics) { member.topics = data.topics; party.refresh(); }
    };
    ready.then(() => port.postMessage({kind: "hello", lock}));
  };
}

function workerLock() { return `qgstream worker ${import.meta.url} `; }

// ---- The page ----

/** What came: `data` as it was published, and parsed when asked for. */
export class StreamEvent extends MessageEvent {
  #json;
  #isParsed = false;

  constructor(type, {topic = null, event = null, ...init} = {}) {
    super(type, init);
    Object.defineProperties(this, {topic: {value: topic, enumerable: true}, event: {value: event, enumerable: true}});
  }

  get json() {
    if (!this.#isParsed) this.#json = JSON.parse(this.data);
    this.#isParsed = true;
    return this.#json;
  }
}

/** How the connection is, and why it is not open. */
export class StateEvent extends Event {
  constructor(type, {state, why = null, reason = null, status = null, message = null, waitMs = null}) {
    super(type);
    Object.assign(this, {state, why, reason, status, message, waitMs});
  }
}

/** The way to a line in the worker. It looks like a line to its stream. */
class Share {
  #port; #say; #askToken;
  #free = new AbortController();
  #over = false;

  /** Resolves when the worker has answered; rejects if there can be none. */
  static async join(script, request, say, askToken) {
    const share = new Share(say, askToken);
    if (navigator.locks) {
      request.tab = `qgstream tab ${crypto.randomUUID()}`;
      await new Promise((resolve) => {
        navigator.locks.request(request.tab, () => new Promise((release) => {
          share.#free.signal.addEventListener("abort", release);
          resolve();
        }));
      });
    }
    try {
      await startWorker(script, (worker) => share.#connect(worker, request));
    } catch (error) {
      share.close();
      throw error;
    }
    return share;
  }

  constructor(say, askToken) {
    this.#say = say;
    this.#askToken = askToken;
  }

  setTopics(topics) { this.#port.postMessage({topics}); }

  listen(_type, types) { this.#port.postMessage({types}); }

  close() {
    this.#over = true;
    this.#port?.postMessage({leave: true});
    this.#free.abort();
  }

  #connect(worker, request) {
    this.#port = worker.port;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error("the worker has not answered")), HELLO_MS);
      worker.onerror = () => { clearTimeout(timer); reject(new Error("the worker could not be started")); };
      worker.port.onmessage = ({data}) => {
        if (data.kind === "hello") {
          clearTimeout(timer);
          this.#watch(data.lock);
          resolve();
        } else if (data.kind === "token") {
          this.#answer();
        } else if (!this.#over) {
          this.#say(data);
        }
      };
      worker.port.postMessage({join: request});
    });
  }

  #watch(lock) {
    const gone = () => { if (!this.#over) this.#say({kind: "alone"}); };
    navigator.locks?.request(lock, {mode: "shared", signal: this.#free.signal}, gone).catch(() => {});
  }

  async #answer() {
    try {
      this.#port.postMessage({token: {token: await this.#askToken()}});
    } catch (error) {
      this.#port.postMessage({token: {error: String(error)}});
    }
  }
}

/** A worker of this page's origin, and all of its tabs get the same one. */
async function startWorker(script, connect) {
  if (script) return connect(new SharedWorker(script, {type: "module", name: "qgstream-1"}));
  let worker;
  try {
    // Written like this, bundlers see that the file is a worker's too.
    worker = new SharedWorker(new URL("./client.js", import.meta.url), {type: "module", name: "qgstream-1"});
  } catch (error) {
    if (error.name !== "SecurityError" || !navigator.locks) throw error;
  }
  if (worker) return connect(worker);
  // This file comes from another origin, and a worker may not. A blob of this origin may import it; each has an
  // address of its own, so the running worker's is found by its lock. One tab at a time: else two would start two.
  await navigator.locks.request("qgstream start", async () => {
    const {held} = await navigator.locks.query();
    const running = held.find(({name}) => name.startsWith(workerLock()))?.name.slice(workerLock().length);
    const code = new Blob([`import ${JSON.stringify(import.meta.url)};`], {type: "text/javascript"});
    await connect(new SharedWorker(running ?? URL.createObjectURL(code), {type: "module", name: "qgstream-1"}));
  });
}

/** A stream of a qgstream server. It connects by itself, and goes on until `close()`. */
export class Stream extends EventTarget {
  #url; #options; #topics;
  #types = new Set();
  #line = null;
  #turn = 0;
  #state = "connecting";
  #lastEventId;
  #isShared = false;
  #onPageHide = () => { if (this.#isShared) this.#stop(); };
  #onPageShow = ({persisted}) => { if (persisted && this.#state !== "closed" && !this.#line) this.#alone(); };

  constructor(url, options = {}) {
    super();
    this.#url = new URL(url, globalThis.location?.href);
    const query = this.#url.searchParams;
    this.#topics = [...new Set([...query.getAll("topic"), ...(options.topics ?? [])])].sort();
    this.#lastEventId = options.lastEventId ?? query.get("last_event_id") ?? "";
    this.#options = {shared: true, replay: query.get("replay"), withCredentials: false, backoffMs: [3000, 30_000], ...options};
    for (const name of ["topic", "last_event_id", "replay", "envelope"]) query.delete(name);
    // Not at once: who makes a stream adds its listeners next, or (React's StrictMode) closes it again.
    queueMicrotask(() => { if (this.#state !== "closed") this.#start(); });
  }

  /** The address without what is an option. */
  get url() { return this.#url.href; }
  get topics() { return [...this.#topics]; }
  /** `connecting`, `open`, `waiting` or `closed`. */
  get state() { return this.#state; }
  /** The position: what is told to a server to go on from here. */
  get lastEventId() { return this.#lastEventId; }
  /** Whether other tabs share the connection, or could. */
  get isShared() { return this.#isShared; }

  /** Listen to other topics from here on; none are all. The position is kept. */
  setTopics(topics) {
    this.#topics = [...new Set(topics)].sort();
    this.#line?.setTopics(this.#topics);
  }

  addEventListener(type, ...more) {
    super.addEventListener(type, ...more);
    if (RESERVED.has(type) || this.#types.has(type)) return;
    this.#types.add(type);
    this.#line?.listen(type, [...this.#types]);
  }

  close() {
    if (this.#state === "closed") return;
    this.#stop();
    globalThis.removeEventListener?.("pagehide", this.#onPageHide);
    globalThis.removeEventListener?.("pageshow", this.#onPageShow);
    this.#hear({kind: "state", state: "closed"});
  }

  #stop() {
    this.#turn += 1;
    this.#line?.close();
    this.#line = null;
    this.#isShared = false;
  }

  async #start() {
    globalThis.addEventListener?.("pagehide", this.#onPageHide);
    globalThis.addEventListener?.("pageshow", this.#onPageShow);
    const {shared, replay, worker} = this.#options;
    // Who begins at a place of its own cannot begin where the others are.
    if (!shared || this.#lastEventId || replay || typeof SharedWorker === "undefined") return this.#alone();
    const turn = this.#turn, heard = this.#types.size, topics = this.#topics;
    const settings = this.#settings();
    const request = {
      key: JSON.stringify([settings.url, settings.withCredentials, settings.hasToken, shared]),
      settings, topics, types: [...this.#types],
    };
    try {
      const line = await Share.join(worker, request, (said) => { if (turn === this.#turn) this.#hear(said); }, () => this.#token());
      if (turn !== this.#turn) return line.close();
      this.#line = line;
      this.#isShared = true;
      // What has changed while the worker started.
      if (heard !== this.#types.size) line.listen(null, [...this.#types]);
      if (topics !== this.#topics) line.setTopics(this.#topics);
    } catch {
      if (turn === this.#turn) this.#alone();
    }
  }

  /** A connection of this page's own. */
  #alone() {
    this.#stop();
    const turn = this.#turn;
    const settings = {...this.#settings(), topics: this.#topics, lastEventId: this.#lastEventId};
    this.#line = new Line(settings, (said) => { if (turn === this.#turn) this.#hear(said); }, () => this.#token());
    for (const type of this.#types) this.#line.listen(type);
    this.#line.open();
  }

  #settings() {
    const {withCredentials, replay, backoffMs, token} = this.#options;
    return {url: this.#url.href, withCredentials, replay, backoffMs, hasToken: Boolean(token), lastEventId: ""};
  }

  async #token() { return this.#options.token(); }

  #hear(said) {
    if (said.kind === "alone") return this.#alone();
    if (said.kind === "state") {
      this.#state = said.state;
      this.dispatchEvent(new StateEvent("state", said));
      return;
    }
    const {type, id, topic, event, data} = said;
    if (id) this.#lastEventId = id;
    this.dispatchEvent(new StreamEvent(type, {data, lastEventId: id, origin: this.#url.origin, topic, event}));
  }
}

if (typeof SharedWorkerGlobalScope !== "undefined" && globalThis instanceof SharedWorkerGlobalScope && globalThis.name === "qgstream-1") {
  serve();
}
