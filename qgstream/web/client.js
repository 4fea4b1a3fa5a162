// The browser's half of qgstream: a stream that comes back by itself, and one connection for all tabs of an origin.
// How to use it: docs/javascript.md. Types: client.d.ts. No dependencies, and importing it does nothing.
//
// From the bottom up: a parser reads the format. A line is one connection and everything that brings it back. A group
// is the pages that share a line: one of them leads and has the line, the others hear from it. A member is what one
// stream gets from its group, or from a line of its own until it has what the group has. A Stream is what a page uses.
// The first four are functions with variables, because minifying makes those short; nobody else sees them.
//
// There are three state machines: of a line (`phase`), of a page in its group (`line`, `channel`), and of a member
// (`group`, `own`, `partedUntil`). Each is drawn where it is made. What they say goes up as objects of two kinds: a state
// ({state, why, ...}, as a StateEvent has it), or a step in the log ({type, prev, id, ...}, from the position `prev` to
// `id`). A step without a `type`, or with topics of others, only moves the position.

// ---- Words and positions ----

// Messages of the server's own (docs/http-interface.md). With `envelope=1` they are the ones without an envelope, so
// nobody can publish a false one.
const ENDS = ["closing", "rejected"];
const OWN = ["connected", "heartbeat", "reset", ...ENDS];
// Event types that mean something here: published ones arrive as `message`.
const RESERVED = new Set([...OWN, "state", "open", "error", "message", "*"]);

const TICK_MS = 1000;
const ANSWER_MS = 20_000;     // for the first message: a seventh HTTP/1.1 connection waits for ever
const LONGEST_MS = 300_000;   // for a wait that the server asks for
const SILENT_MS = 2000;       // at least, however short the heartbeats
const ASLEEP_MS = 120_000;    // between two ticks. A hidden tab has one a minute
const APART_MS = 60_000;      // a stream that is refused a second time stays alone this long, then twice as long, ...
const STEADY_MS = 10_000;     // a stream that lasts this long has forgotten the failures before it
// In ticks, because a page that slept or was busy has to hear first what waits for it.
const PING_TICKS = 5;         // without a word of the leading page: ask whether it lives
const STEAL_TICKS = 8;        // then take its place
const TOKEN_TICKS = 5;        // for another page to give a token when one page could not
const MAX_WAITING = 10_000;   // events that a `for await` may be behind

// How the server writes it: the data stands in it as it was published.
const TEXT = String.raw`"(?:[^"\\]|\\.)*"`;
const ENVELOPE = new RegExp(String.raw`^\{"id": *${TEXT}, *"topic": *(${TEXT}|\[(?:${TEXT},? *)+\]), *"event": *(${TEXT}|null), *"data": *`);

function unwrap(text) {
  const found = ENVELOPE.exec(text);
  if (found === null) return null;
  const data = text.slice(found[0].length, -1);
  return {topic: JSON.parse(found[1]), event: JSON.parse(found[2]), data: data.startsWith('"') ? JSON.parse(data) : data};
}

function parseJSON(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

/** Where position `a` is in the log: before `b` (negative), at `b` (0) or after it; NaN when the logs are not the same. */
function order(a, b) {
  if (a === b) return 0;
  const [one, other] = [a, b].map((each) => /^(.+)-(\d+)$/.exec(each));
  if (!one || one[1] !== other?.[1]) return NaN;
  return BigInt(one[2]) < BigInt(other[2]) ? -1 : 1;
}

/** Whether a topic is among the patterns (`name` or `prefix*`). No patterns at all are every topic. */
function covers(patterns, topic) {
  return patterns.length === 0 || patterns.some((pattern) =>
    pattern === topic || (pattern.endsWith("*") && topic.startsWith(pattern.slice(0, -1))));
}

/** Whether the connection that asked for `asked` brings everything of `topics`. */
const isWithin = (topics, asked) => asked !== null && (topics.length > 0 ? topics.every((each) => covers(asked, each)) : asked.length === 0);

// No topic has a line end in it.
const same = (some, others) => some.join("\n") === others.join("\n");

/** Everything that these lists of topics ask for. */
const union = (lists) => lists.some((topics) => topics.length === 0) ? [] : [...new Set(lists.flat())].sort();

// ---- The format ----

/** Reads the bytes of one connection (WHATWG HTML, 9.2.6). Gives the blocks that they complete. */
function makeParser(id, setRetry) {
  const decoder = new TextDecoder();  // it takes the BOM away
  let rest = "";                      // a line without its end; nothing looks into it until it has one
  let endsWithCR = false, type = "", data = [];

  const readField = (line) => {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
    if (name === "data") data.push(value);
    else if (name === "event") type = value;
    else if (name === "id" && !value.includes("\0")) id = value;
    else if (name === "retry" && /^\d+$/.test(value)) setRetry(Number(value));
  };

  return function* (bytes) {
    let text = decoder.decode(bytes, {stream: true});
    if (text === "") return;
    if (endsWithCR && text[0] === "\n") text = text.slice(1);
    endsWithCR = text.endsWith("\r");
    const lines = text.split(/\r\n?|\n/);
    lines[0] = rest + lines[0];
    rest = lines.pop();
    for (const line of lines) {
      if (line !== "") {
        readField(line);
        continue;
      }
      yield {type: type || "message", data: data.length > 0 ? data.join("\n") : null, id};
      type = "";
      data = [];
    }
  };
}

// ---- The connection ----

/**
 * One connection at a time, for as long as it takes, from a position in the log. `say` gets what happens, and
 * `askToken` gives a token. `say` may call anything of a line: what goes on after it looks whether its turn is over.
 *
 *     connecting --`connected`--> open
 *     connecting, open --no answer, a refusal, the end, silence--> waiting      (`again`)
 *     waiting --the time is over, `online`--> connecting                        (`open`)
 *     any --`reconnect`, other topics, a token that expired--> connecting       (`open`)
 *     any --`close`--> the end
 *
 * Each arrow goes through `begin`, which aborts what the phase before has left running; but not the first one: it stays on
 * the same connection.
 */
function makeLine({url, replay, withCredentials, backoffMs: [firstMs, maxMs], token: hasToken}, topics, position, say, askToken) {
  let phase, told;            // connecting, open or waiting; which of them was said last
  let asked = null;           // the topics of the request, once it is sent
  let turn = new AbortController();  // what was begun in an earlier turn is aborted
  let token = null, isAsking;
  let word, retryMs;          // why the server ends the stream, and when to come back
  let failures = 0, timer, dueAt, openedAt;
  let wallMs = Date.now(), clockMs = performance.now(), quietMs, beatAt, beatMs = null;

  const begin = (next) => {
    turn.abort();
    clearTimeout(timer);
    phase = next;
    asked = word = beatAt = null;
    isAsking = false;
    quietMs = 0;
    turn = new AbortController();
    return turn.signal;
  };

  const tell = (state, more) => {
    told = state;
    say({state, ...more});
  };

  /** Connect now, where the last connection ended. A quiet try says nothing unless it fails: it is still `open`. */
  const open = async (isQuiet) => {
    const signal = begin("connecting");
    if (isQuiet) told = "open";
    else tell("connecting");
    let ending = {why: "token"};
    try {
      await null;  // listeners come first: they may close the stream, or want other topics
      signal.throwIfAborted();
      if (hasToken && token === null) {
        isAsking = true;
        const given = await askToken();
        signal.throwIfAborted();
        token = given;
        isAsking = false;
        quietMs = 0;
      }
      ending = {why: "unreachable"};
      asked = topics;
      const answer = await fetch(href(), {
        signal, cache: "no-store", credentials: withCredentials ? "include" : "same-origin",
        headers: {Accept: "text/event-stream", ...(hasToken && {Authorization: `Bearer ${token}`})},
      });
      const isStream = answer.status === 200 && /^text\/event-stream/i.test(answer.headers.get("Content-Type"));
      if (!isStream) return await refused(answer, signal);
      const parse = makeParser(position, (ms) => { retryMs = ms; }), reader = answer.body.getReader();
      for (;;) {
        const {done, value} = await reader.read();
        signal.throwIfAborted();
        if (done) break;
        quietMs = 0;
        for (const block of parse(value)) {
          received(block, signal);
          signal.throwIfAborted();
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (ending.why === "token") ending.message = String(error);
    }
    // A server that ends a stream has said when to come back: a time of its own for each client.
    again(word ?? (phase === "open" ? {why: "lost"} : ending), word ? retryMs : undefined);
  };

  const reopen = () => open(told === "open");

  const href = () => {
    const address = new URL(url), query = address.searchParams;
    for (const topic of topics) query.append("topic", topic);
    query.set("envelope", "1");
    // Not the header of this name: a request with it would be preflighted.
    if (position) query.set("last_event_id", position);
    if (replay) query.set("replay", replay);
    return address;
  };

  const received = ({type, data, id}, signal) => {
    const prev = position, published = data && unwrap(data);
    if (data === null || published) {
      position = id;
      if (data === null) beat(performance.now(), true);
      say({type, prev, id, ...published});
      return;
    }
    const {event: own, reason, replay: way, timestamp} = parseJSON(data);
    if (!OWN.includes(own)) return;
    position = id;
    if (own === "connected") {
      if (!same(topics, asked)) return reopen();  // they changed since they were asked for
      phase = "open";
      openedAt = performance.now();
      tell("open", {asked});
      if (signal.aborted) return;
    }
    if (own === "heartbeat") beat(Date.parse(timestamp));
    say({isOwn: true, type: own, prev, id: position, isGap: (way ?? own) === "reset", data});
    if (signal.aborted || !ENDS.includes(own)) return;
    word = {why: own, reason};
    if (hasToken && reason === "token_expired") {
      token = null;
      open();
    }
  };

  /** By the server's clock where it says the time: how late a heartbeat is heard says more about this machine. */
  const beat = (at, isOurs) => {
    if (beatAt !== null) beatMs = isOurs ? Math.max(at - beatAt, beatMs) : at - beatAt;
    beatAt = at;
  };

  const refused = async (answer, signal) => {
    const {status, ok} = answer, isForToken = hasToken && (status === 401 || status === 403);
    // Of this server, or of a proxy that has errors of another form, or breaks off in the middle of one.
    const {error} = !ok && parseJSON(await answer.text().catch(String));
    signal.throwIfAborted();
    const {code = null, message = null} = typeof error?.code === "string" && error;
    if (isForToken) {
      token = null;
      if (failures === 0) {  // the token was good until now
        failures = 1;
        reopen();
        return;
      }
    }
    // Somebody has to change something first.
    const isMistake = !isForToken && /^4(?!08|25|29)/.test(status);
    const soonestMs = Number(answer.headers.get("Retry-After")) * 1000 || 0;
    again({why: "refused", status, code, message}, Math.max(soonestMs, draw(isMistake)));
  };

  /** Nobody said when to come back, so all who lost a stream now must not come back together. */
  const draw = (isMistake) =>
    Math.round((isMistake ? maxMs : Math.min(maxMs, firstMs * 2 ** failures)) * (1 + Math.random()) / 2);

  const again = (ending, wantedMs = draw()) => {
    const waitMs = Math.min(wantedMs, LONGEST_MS);
    begin("waiting");
    if (ending.why !== "closing") failures += 1;
    dueAt = performance.now() + waitMs;
    timer = setTimeout(open, waitMs);
    tell("waiting", {...ending, waitMs, failures});
  };

  /** Once a second, or when another page says so: a hidden page has its timers late. */
  const tick = () => {
    const wasWallMs = wallMs, wasClockMs = clockMs, thisTurn = turn;
    wallMs = Date.now();
    clockMs = performance.now();
    // One of them stands still while the machine sleeps, the other may be set back.
    const passedMs = Math.max(wallMs - wasWallMs, clockMs - wasClockMs);
    quietMs += passedMs;
    // After a sleep, what has arrived meanwhile is queued behind this timer: give it its turn first.
    if (phase === "waiting") {
      if (clockMs >= dueAt) open();
    } else {
      setTimeout(() => { if (turn === thisTurn) judge(passedMs > ASLEEP_MS); }, passedMs > 3 * TICK_MS ? TICK_MS : 0);
    }
  };

  /** A connection can die without a word. */
  const judge = (hasSlept) => {
    if (phase === "open" && clockMs - openedAt > STEADY_MS) failures = 0;
    const patienceMs = isAsking ? Infinity
      : phase === "connecting" ? ANSWER_MS
      : beatMs !== null ? Math.max(3 * beatMs, SILENT_MS)
      : hasSlept ? ASLEEP_MS : Infinity;  // the server may send no heartbeats
    if (quietMs <= patienceMs) return;
    beatMs = null;  // it may have been that they come less often now
    again({why: "silent"});
  };

  const online = () => { if (phase === "waiting") open(); };
  const ticking = setInterval(tick, TICK_MS);
  addEventListener("online", online);

  return {
    open, tick,

    /** Connect anew, unless that is about to happen. */
    reconnect() { if (phase !== "connecting" || asked) open(); },

    close() {
      begin();
      clearInterval(ticking);
      removeEventListener("online", online);
    },

    /** Other topics, from the position of the old ones, or from an earlier one. */
    setTopics(others, from) {
      topics = others;
      // A line that waits has a reason to, and asks for the new ones when that is over.
      if (!asked || same(topics, asked)) return;
      if (order(from, position) < 0) position = from;
      reopen();
    },
  };
}

// ---- The pages that share a connection ----

const groups = new Map();

const isVisible = () => globalThis.document?.visibilityState !== "hidden";

/** The group of this name; with null a new one that nobody else can join. */
function findGroup(name, settings) {
  const group = groups.get(name) ?? makeGroup(name, settings);
  if (name !== null) groups.set(name, group);
  return group;
}

/**
 * The streams of this page that may share a connection, and the other pages that have such streams.
 *
 * The page that holds the lock leads: it has the line, and tells the others over a channel what comes. All pages know
 * each other's topics, so that each can follow. A page that does not answer loses the lock to one that asks. What each
 * stream has got is a position in the log, so it makes no difference from which page, or from how many, it hears.
 *
 *     follows (a channel, no line) --it gets the lock: the leader has gone, or was silent--> leads (a channel, a line)
 *     leads --another page took the lock--> follows
 *     any --its last member leaves--> the end
 *
 * Without locks, or without a name, it leads alone from the beginning (a line, no channel).
 */
function makeGroup(name, settings) {
  const members = new Set(), leaving = new AbortController();
  const id = Math.random();
  let pages = new Map();   // the lists of topics of each other page
  let leader = null, line = null, channel = null, ticking;
  let place = new AbortController();  // in the queue for the lead, or the lead
  let silence = PING_TICKS;
  let good = null, trial = 0;         // topics that were not refused; which list is tried alone
  // The question for a token: its number, when this page leads and when another does; how long ago; why one has none.
  let asking = null, given, ticks, problem, settle;

  // The line as far as it was heard: its position, the topics of its connection, and what it said of its state last.
  const here = {at: "", asked: null, state: {state: "connecting"}};

  const group = {
    isShared: false, here,

    add(member) {
      members.add(member);
      if (members.size === 1) start();
      else changed();
      member.meet();
    },

    remove(member) {
      if (!members.delete(member)) return;
      if (members.size > 0) changed();
      else leave();
    },

    reconnect() {
      if (line) line.reconnect();
      else post({page: id, act: "reconnect"});
    },
  };

  const ours = () => [...members].map((member) => member.topics);
  const lists = () => [...pages.values(), ours()].flat();
  const post = (message) => channel?.postMessage(message);
  const tellTopics = (more) => post({page: id, topics: ours(), ...more});

  /** After a member's topics have changed. `from` is its position. */
  const changed = group.changed = (from) => {
    tellTopics({from});
    line?.setTopics(union(lists()), from);
  };

  /** Hold a lock until `signal` aborts. `then` is called when it is held. */
  const hold = (what, signal, then, isStolen) => navigator.locks.request(
    what, isStolen ? {steal: true} : {signal}, () => new Promise((release) => {
      signal.addEventListener("abort", release);
      if (signal.aborted) release();
      else then();
    }));

  const start = async () => {
    const {signal} = leaving;
    try {
      // The others see by it that this page lives: one that crashes says nothing.
      await new Promise((resolve, reject) => {
        if (name === null) reject();
        else hold(`${name} ${id}`, signal, resolve).catch(reject);
      });
      channel = new BroadcastChannel(name);
    } catch {
      // Without locks (plain http from another machine), or in a frame without an origin: this page alone.
      if (!signal.aborted) lead();
      return;
    }
    if (signal.aborted) return channel.close();
    group.isShared = true;
    channel.onmessage = ({data}) => heard(data);
    ticking = setInterval(tick, TICK_MS);
    tellTopics({isNew: true});
    queue();
  };

  const leave = () => {
    groups.delete(name);
    post({page: id, isGone: true});
    channel?.close();
    clearInterval(ticking);
    line?.close();
    channel = line = null;
    place.abort();
    leaving.abort();
  };

  /** Wait for the lead, or take it. */
  const queue = (isStolen) => {
    place.abort();
    const {signal} = place = new AbortController();
    hold(name, signal, lead, isStolen).catch(() => {
      if (signal.aborted) return;
      // Another page has taken the lead: this one had not answered it.
      line?.close();
      line = leader = asking = null;
      silence = PING_TICKS;
      tellTopics({isNew: true});
      queue();
    });
  };

  const lead = () => {
    leader = id;
    for (const member of members) here.at ||= member.lent;
    line = makeLine(settings, union(lists()), here.at, said, askToken);
    for (const page of pages.keys()) watch(page);
    postLead();
    reopen();
  };

  const reopen = () => line?.open(here.state.state === "open");

  const postLead = (to) => post({by: id, lead: {...here}, pages: [...pages, [id, ours()]], to});

  const watch = (page) => hold(`${name} ${page}`, place.signal, () => drop(page)).catch(() => {});

  const drop = (page) => {
    if (!pages.delete(page) || !line) return;
    post({page, isGone: true});
    changed();
  };

  /** What the line of this page says. */
  const said = (what) => {
    if (what.state === "open") {
      good = what.asked;
      trial = 0;
      queueMicrotask(() => line?.setTopics(union(lists())));
    } else if (/^40[013]$/.test(what.status) && part(what.status)) {
      return;
    }
    take(what);
    post({by: id, said: what});
  };

  const take = (what) => {
    if (what.state) {
      here.state = what;
      here.asked = what.asked ?? null;
    } else {
      here.at = what.id;
    }
    for (const member of [...members]) member.take(what);
  };

  /** What one stream asks for may be refused: the others go on without it. Whether something else is tried now. */
  const part = (status) => {
    const all = lists(), isStrange = (topics) => !isWithin(topics, good);
    let next;
    if (all.every(isStrange) || (status !== 401 && !all.some(isStrange))) {
      // Nothing of this was ever good, or all of it was until now: look for one that is. If there is none, all stay.
      // A 401 for what was good is about the credentials, which are those of all.
      const kinds = [...new Map(all.map((topics) => [`${topics}`, topics])).values()];
      next = kinds.length > 1 && kinds[trial++];
      if (!next) trial = 0;
    } else if (all.some(isStrange)) {
      next = good;
      post({by: id, part: good});
      partFrom(good);
    }
    line?.setTopics(next || union(all));
    if (next) reopen();
    return next;
  };

  const partFrom = (topics) => {
    for (const member of [...members]) if (!isWithin(member.topics, topics)) member.part();
  };

  const heard = ({page, by, ...data}) => {
    if (page) heardFromPage(page, data);
    else if (data.lead) {
      if (line) return;  // from before this page took the lead
      leader = by;
      silence = 0;
      pages = new Map(data.pages);
      if (!pages.delete(id)) changed();
      if (data.to && data.to !== id) return;
      Object.assign(here, data.lead);
      for (const member of [...members]) member.meet();
    } else if (by === leader) {
      silence = 0;
      if (data.said) take(data.said);
      else if (data.part) partFrom(data.part);
      else if (data.token !== given && (data.isAll || isVisible())) giveToken(data.token);
    }
  };

  const heardFromPage = (page, {topics, from, isNew, isGone, act, token, ...answer}) => {
    if (topics) {
      if (line && !pages.has(page)) watch(page);
      pages.set(page, topics);
      if (!line) return;
      if (isNew) postLead(page);
      line.setTopics(union(lists()), from);
    } else if (isGone) drop(page);
    else if (!line) return;
    else if (act) line[act](), tick();
    else if (token === asking) answered(answer);
  };

  const tick = () => {
    if (line) {
      if (!asking) return;
      ticks += 1;
      if (ticks === 1) post({by: id, token: asking, isAll: true});
      answered({});
      return;
    }
    silence += 1;
    if (isVisible() && here.state.state !== "open") post({page: id, act: "tick"});
    if (silence === PING_TICKS) tellTopics({isNew: true});
    if (silence < STEAL_TICKS) return;
    silence = PING_TICKS;
    queue(true);
  };

  /** The first token that a page gives. The visible ones and this one are asked first, all of them a tick later. */
  const askToken = () => new Promise((...both) => {
    settle = both;
    asking = Math.random();
    ticks = problem = 0;
    post({by: id, token: asking});
    giveToken(asking);
  });

  const giveToken = async (token) => {
    given = token;
    const answer = await Promise.any([...members].map((member) => member.token())).then(
      (value) => ({value}), ({errors}) => ({failed: String(errors[0])}));
    if (token === asking) answered(answer);
    else post({page: id, token, ...answer});
  };

  /** With a token, or why one page has none: the others have some time to do better. */
  const answered = ({value, failed}) => {
    const [resolve, reject] = settle;
    problem ||= failed;
    if (value !== undefined) resolve(value);
    else if (problem && (pages.size === 0 || ticks > TOKEN_TICKS)) reject(problem);
    else return;
    asking = null;
  };

  return group;
}

// ---- One stream ----

/**
 * What one stream gets. `say` gets what happens, once and in the log's order. `at` is a position: it has all before it.
 *
 *     stopped (no group) --`start`--> follows (a group, no line of its own)
 *     follows --the group is ahead of it--> catches up (a group, and a line of its own)            (`goAlone`)
 *     catches up --the group has nothing that this one has not got--> follows                      (`leaveOwn`)
 *     follows, catches up --the server refuses its topics to the group--> parted (a line of its own)  (`part`)
 *     parted --let in again, or other topics--> catches up, or follows             (`join`)
 *     any --`stop`--> stopped
 */
function makeMember(name, settings, topics, at, say, token) {
  let group = null;
  let own = null;           // a line of its own
  let partedUntil = 0, partings = 0;  // not 0: the others go on without it, at least until then; how often that was so
  let hasLived = false;
  let told = null;

  /** A line of its own, from where this one is. */
  const goAlone = () => {
    own = makeLine(settings, topics, at, takeOwn, token);
    own.open(told === "open");
  };

  const takeOwn = (said) => {
    if (said.state) show(said);
    else pass(said);
    // A stream that was parted waits longer each time: it would disturb the others again and again.
    if (!partedUntil) meet();
    else if (told === "open" && performance.now() >= partedUntil) join();
  };

  const join = (isBehind) => {
    partedUntil = 0;
    group = findGroup(name, settings);
    if (isBehind) goAlone();
    group.add(member);
  };

  /** Go on with the group, if that has nothing that this one has not got. */
  const leaveOwn = () => {
    own.close();
    own = null;
    show(group.here.state);
  };

  /** Where the group is now. */
  const meet = () => {
    const {at: there, state} = group.here;
    take(state);
    // The first time: it is connected already, and this one begins where it is.
    const data = JSON.stringify({event: "connected", timestamp: new Date().toISOString(), replay: "none"});
    take({isOwn: at === "", type: "connected", prev: there, id: there, data});
  };

  /** What the group's line says. */
  const take = (said) => {
    const {state, isOwn, type, prev, isGap} = said;
    if (state) {
      if (!own) show(said);
    } else if (isOwn && ENDS.includes(type)) {
      if (!own) say(said);
    } else if (isWithin(topics, group.here.asked)) {
      // Whole: nothing lies between what this one has and what comes.
      const isWhole = at === "" || (isGap ? order(at, prev) : order(prev, at)) <= 0;
      if (!isWhole) return own || goAlone();
      if (own) leaveOwn();
      pass(said);
    }
  };

  const show = (said) => {
    // The group may be connected without the topics of this one.
    if (said.asked && !isWithin(topics, said.asked)) said = {state: "connecting"};
    if (said.state === told && told !== "waiting") return;
    told = said.state;
    say(said);
  };

  const pass = (said) => {
    const {isOwn, type, prev, id, topic} = said;
    // After another page took the lead, some of it comes again.
    const isOld = order(id, at) <= 0;
    hasLived = true;
    if (!isOld) at = id;
    if (isOwn) {
      let {data} = said;
      // The group has the topics of all. A stream is told its own.
      if (type === "connected" && name) data = JSON.stringify({...JSON.parse(data), topics: topics.length === 0 ? ["*"] : topics});
      say({...said, data, id: at});
    } else if (topic && [topic].flat().some((each) => covers(topics, each)) && (!isOld || id === prev)) {
      say(said);  // the first of `replay=latest` have no position of their own
    } else {
      say({id: at});
    }
  };

  const member = {
    meet, take, token,
    get topics() { return topics; },
    get isShared() { return !own && !!group?.isShared; },
    /** Where the group's line may begin for this member: not at a place that only this one has asked for. */
    get lent() { return name === null || hasLived ? at : ""; },

    start() {
      if (group) return;
      told = null;
      join(at && name !== null && !hasLived);
    },

    stop() {
      own?.close();
      group?.remove(member);
      own = group = null;
    },

    reconnect() { (own ?? group)?.reconnect(); },

    setTopics(others) {
      topics = others;
      if (!group) return;
      partings = 0;
      if (partedUntil) {
        own.close();
        own = null;
        join();
      }
      own?.setTopics(topics);
      group.changed(own ? "" : at);
      if (!own) show(group.here.state);
    },

    /** The others were refused with this one, and were not before. */
    part() {
      group.remove(member);
      partedUntil = performance.now() + partings++ * APART_MS;
      if (!own) goAlone();
    },
  };
  return member;
}

// ---- What a page uses ----

// Some servers have none, and importing this file does no harm there.
const {MessageEvent: Message = Event} = globalThis;

/** What came: `data` as it was published, and parsed when asked for. */
export class StreamEvent extends Message {
  #parsed;

  constructor(type, {topic = null, event = null, ...init} = {}) {
    super(type, init);
    Object.assign(this, {topic, event});
  }

  get json() { return (this.#parsed ??= [JSON.parse(this.data)])[0]; }
}

/** How the connection is, and why it is not open. */
export class StateEvent extends Event {
  why = null; reason = null; status = null; code = null; message = null; waitMs = null; failures = 0;

  constructor(type, {asked, ...init}) {
    super(type);
    Object.assign(this, init);
  }
}

/** A stream of a qgstream server. It connects by itself, and goes on until `close()`. */
export class Stream extends EventTarget {
  url;          // the address without what is an option
  lastEventId;  // the position: what is told to a server to go on from here
  withCredentials;
  #member; #isFatal;
  #now = {state: "connecting"};
  #life = new AbortController();
  #loops = new Set();
  // As an EventSource has them.
  onopen = null; onmessage = null; onerror = null;

  constructor(url, options) {
    super();
    const {location} = globalThis, address = new URL(url, location?.href ?? "http://localhost"), query = address.searchParams;
    const {
      topics = [], token, signal, isFatal, share = true, replay = query.get("replay"), withCredentials = false,
      backoffMs = [3000, 30_000], lastEventId = query.get("last_event_id") || query.get("lastEventId"),
    } = options ?? {};
    const all = sorted([...query.getAll("topic"), ...topics]);
    for (const name of ["last_event_id", "lastEventId", "topic", "replay", "envelope"]) query.delete(name);
    this.url = address.href;
    this.withCredentials = withCredentials;
    this.lastEventId = lastEventId ?? "";
    this.#isFatal = isFatal;

    // The name of those that may share a connection; null to share none. A stream with credentials gets what they
    // allow, and others that share it get that too: only the page knows that they belong to the same user. Streams
    // that begin with the latest values cannot begin where others are.
    const hasCredentials = token || withCredentials || address.origin === location?.origin;
    const name = !share || replay || (hasCredentials && share === true) ? null
      : `qgstream 2 ${JSON.stringify([this.url, withCredentials, Boolean(token), share])}`;
    // Listeners may call anything, so they never run in the middle of it.
    const say = (said) => queueMicrotask(() => this.#hear(said));
    const settings = {url: this.url, replay, withCredentials, backoffMs, token};
    this.#member = makeMember(name, settings, all, this.lastEventId, say, async () => token());
    for (const type of ["open", "message", "error"]) this.addEventListener(type, (event) => this[`on${type}`]?.(event));
    const life = {signal: this.#life.signal};
    signal?.addEventListener("abort", () => this.close(), life);
    if (signal?.aborted) this.close();
    // On a server nothing starts. In a page not at once: the code that made the stream adds its listeners next, or
    // (React's StrictMode) closes it again.
    if (location) queueMicrotask(() => {
      if (this.#isClosed) return;
      // A page that the browser keeps for the way back, or freezes, holds no connection.
      const {start, stop} = this.#member;
      for (const type of ["pagehide", "freeze"]) addEventListener(type, stop, life);
      for (const type of ["pageshow", "resume"]) addEventListener(type, start, life);
      start();
    });
  }

  get topics() { return [...this.#member.topics]; }
  /** `connecting`, `open`, `waiting` or `closed`. */
  get state() { return this.#now.state; }
  /** As an EventSource has it. */
  get readyState() { return {open: 1, closed: 2}[this.state] ?? 0; }
  /** Whether other tabs share the connection, or could. */
  get isShared() { return this.#member.isShared; }

  get #isClosed() { return this.readyState === 2; }

  /** Listen to other topics from here on; none are all. The position is kept. */
  setTopics(topics) {
    if (!this.#isClosed) this.#member.setTopics(sorted(topics));
  }

  /** Connect anew, from the position, without a wait. */
  reconnect() { this.#member.reconnect(); }

  close() { this.#end({state: "closed"}); }

  /** What was published from now on, and each `reset`, until the stream is closed. */
  async *[Symbol.asyncIterator]() {
    const events = [];
    let wake;
    const loop = (event) => {
      if (events.length <= MAX_WAITING) events.push(event);
      wake?.();
    };
    this.#loops.add(loop);
    try {
      for (;;) {
        if (events.length > MAX_WAITING) throw new RangeError(`${MAX_WAITING} events behind`);
        const event = events.shift();
        if (event) yield event;
        else if (this.#isClosed) return;
        else await new Promise((resolve) => { wake = resolve; });
      }
    } finally {
      this.#loops.delete(loop);
    }
  }

  #end(said) {
    if (this.#isClosed) return;
    this.#member.stop();
    this.#life.abort();
    this.#show(said);
    for (const loop of this.#loops) loop();
  }

  #hear(said) {
    if (this.#isClosed) return;
    if (said.state) {
      const isFatal = said.state === "waiting" && this.#isFatal?.(new StateEvent("state", said));
      if (isFatal) this.#end({...said, state: "closed", waitMs: null});
      else if (!this.#isClosed) this.#show(said);
      return;
    }
    const {type, id, topic, event, data} = said;
    this.lastEventId = id;
    if (!type) return;
    const init = {data, lastEventId: id, origin: new URL(this.url).origin, topic, event};
    const told = new StreamEvent(topic && RESERVED.has(type) ? "message" : type, init);
    if (topic || type === "reset") for (const loop of this.#loops) loop(told);
    this.dispatchEvent(told);
    if (topic && !this.#isClosed) this.dispatchEvent(new StreamEvent("*", init));
  }

  #show(said) {
    this.#now = said;
    this.dispatchEvent(new StateEvent("state", said));
    // What an EventSource says, unless a listener has changed it.
    const also = said.why ? "error" : said.state === "open" && "open";
    if (also && this.#now === said) this.dispatchEvent(new Event(also));
  }
}

const sorted = (topics) => [...new Set(topics)].sort();
