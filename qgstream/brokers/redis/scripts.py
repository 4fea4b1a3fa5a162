"""Lua scripts that Redis runs atomically: no other command runs between their steps. Redis 7.0 or newer.

The log is one stream, and all data about the log is in this key, so that nothing outlives the log. The epoch is the
name of a consumer group that no client reads with. The position of this group is the last entry that a server trimmed,
and its number of read entries is the number of entries trimmed until then. Trimming by other clients shows in Redis'
own counter; then only the start of the remaining entries is known.

Other groups hold the evidence that the log is complete (`brokers.vouching`), each in its name and its position. The
witness is `qgstream.run:<run of Redis>`: it proves nothing after Redis has restarted. The signature is `qgstream.end`.
The groups `qgstream.was:<n>:<epoch>` are the earlier epochs, the newest first. A client that may only add entries
cannot change groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha1

_COMMON = """
local stream, prefix = KEYS[1], 'qgstream:'
local run, signature, was = 'qgstream.run:', 'qgstream.end', 'qgstream.was:'

local function pairs_of(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

local function later(id, other)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  local other_ms, other_seq = string.match(other, '^(%d+)-(%d+)$')
  if ms == other_ms then return tonumber(seq) > tonumber(other_seq) end
  return tonumber(ms) > tonumber(other_ms)
end

local function add(id, n)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if n < 0 and seq == '0' then return string.format('%.0f-999999', ms - 1) end
  return string.format('%s-%.0f', ms, seq + n)
end

local function behind(head, name) return string.sub(name, 1, #head) == head and string.sub(name, #head + 1) end

-- Return the epoch, the id after which the log is complete, the newest id, the group's marks, and the other groups.
local function state()
  if redis.call('EXISTS', stream) == 0 then return {earlier = {}} end
  local found = {earlier = {}}
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local info = pairs_of(group)
    local name = info['name']
    if behind(prefix, name) then
      found.epoch, found.mark = behind(prefix, name), info['last-delivered-id']
      found.marked = tonumber(info['entries-read'] or -1)
    elseif behind(run, name) then found.run = behind(run, name)
    elseif behind(was, name) then found.earlier[#found.earlier + 1] = {behind(was, name), info['last-delivered-id']}
    elseif name == signature then found.ended = info['last-delivered-id'] end
  end
  local info = pairs_of(redis.call('XINFO', 'STREAM', stream))
  found.newest, found.length = info['last-generated-id'], info['length']
  found.trimmed = info['entries-added'] - info['length']
  found.forgotten = found.mark
  if found.marked ~= found.trimmed then
    if found.trimmed == 0 then found.forgotten = '0-0'
    elseif found.length == 0 then found.forgotten = found.newest
    else found.forgotten = add(redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1], -1) end
  end
  return found
end

local function name_it(epoch, found)
  local marks = found.newest and {found.forgotten, 'ENTRIESREAD', found.trimmed} or {'0-0', 'MKSTREAM', 'ENTRIESREAD', 0}
  redis.call('XGROUP', 'CREATE', stream, prefix .. epoch, unpack(marks))
end

local function is_full(id) return tonumber(string.match(id, '-(%d+)$')) > 900000 end
local function is_beyond(id) return tonumber(string.match(id, '^%d+')) > 9999999999999 end
local function next_ms(id) return string.format('%.0f-0', string.match(id, '^%d+') + 1) end

-- An entry with an id from the far future (after 2286) leaves no ids for later entries. Such an entry is moved to the
-- present, together with all later entries. Return the number of moved entries.
local function mend(found)
  local last, moved = found.newest or '0-0', {}
  if is_beyond(last) then
    while true do
      local entries = redis.call('XRANGE', stream, '10000000000000-0', '+', 'COUNT', 100)
      if #entries == 0 then break end
      for _, entry in ipairs(entries) do
        redis.call('XDEL', stream, entry[1])
        moved[#moved + 1] = entry[2]
      end
    end
    local time = redis.call('TIME')
    last = string.format('%.0f-0', time[1] * 1000 + math.floor(time[2] / 1000))
    local left = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
    for _, id in ipairs({left and left[1] or '0-0', found.mark or '0-0'}) do
      if not is_beyond(id) and later(id, last) then last = id end
    end
    local added = pairs_of(redis.call('XINFO', 'STREAM', stream))['entries-added'] - #moved
    redis.call('XSETID', stream, last, 'ENTRIESADDED', added, 'MAXDELETEDID', '0-1')
  end
  if is_full(last) then redis.call('XSETID', stream, next_ms(last)) end
  for _, fields in ipairs(moved) do
    if #fields < 7000 then redis.call('XADD', stream, '*', unpack(fields)) end  -- the limit of unpack
  end
  return #moved
end

local function told(found)
  return {found.epoch or '', found.forgotten or '0-0', found.newest or '0-0', found.ended or ''}
end

-- Create the witness of this run of Redis (without a run, a witness that proves nothing), and remove the signature.
local function vouch(found, now)
  if found.ended then redis.call('XGROUP', 'DESTROY', stream, signature) end
  if found.run == now then return end
  if found.run then redis.call('XGROUP', 'DESTROY', stream, run .. found.run) end
  redis.call('XGROUP', 'CREATE', stream, run .. now, '0-0')
end
"""  # noqa: E501  # a line of Lua


@dataclass(frozen=True)
class Script:
    """A script. Its first key is the stream; it is called by the digest of its text."""

    body: str
    text: str = field(init=False)
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", _COMMON + self.body)
        object.__setattr__(self, "sha", sha1(self.text.encode(), usedforsecurity=False).hexdigest())


# The state of the log: epoch, forgotten, newest, and the id in the signature.
STATE = Script("return told(state())")

# Create the log. Or give it an epoch, if it has none, or if no process ever vouched for its epoch. ARGV: the new epoch,
# and the run of Redis.
PREPARE = Script("""
local found = state()
if not found.epoch or not found.run then
  if found.epoch then redis.call('XGROUP', 'DESTROY', stream, prefix .. found.epoch) end
  name_it(ARGV[1], found)
  vouch(found, ARGV[2])
end
""")

# Make room for later entries, see `mend`.
MEND = Script("return mend(state())")

# The evidence that the log is complete: its epoch, the run of the witness, the signature, and the earlier epochs.
STANDING = Script("""
local found = state()
return {found.epoch or '', found.run or false, found.ended or '', found.earlier}
""")

# Give a log that has changed a new epoch and a witness. ARGV: the old epoch, the new epoch, the run of Redis, and the
# earlier epochs, each as the end of its group's name and its position.
RENEW = Script("""
local found = state()
if found.epoch ~= ARGV[1] then return end
redis.call('XGROUP', 'DESTROY', stream, prefix .. ARGV[1])
name_it(ARGV[2], found)
for _, epoch in ipairs(found.earlier) do redis.call('XGROUP', 'DESTROY', stream, was .. epoch[1]) end
for at = 4, #ARGV, 2 do redis.call('XGROUP', 'CREATE', stream, was .. ARGV[at], ARGV[at + 1]) end
vouch(found, ARGV[3])
""")

# Record that a process follows the log of this epoch in this run of Redis. ARGV: both.
VOUCH = Script("""
local found = state()
if found.epoch == ARGV[1] then vouch(found, ARGV[2]) end
""")

# Sign the end of the log of this epoch. ARGV: the epoch.
SIGN = Script("""
local found = state()
if found.epoch ~= ARGV[1] then return end
if found.ended then redis.call('XGROUP', 'DESTROY', stream, signature) end
redis.call('XGROUP', 'CREATE', stream, signature, '$')
""")

# Read a page, forwards after an id or backwards from an id. ARGV: the id, the limits in entries and bytes, whether
# backwards.
PAGE = Script("""
local limit, max_bytes, back = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local entries, bytes = {}, 0
local from = back and ARGV[1] or '(' .. ARGV[1]
while #entries < limit do
  local count = math.min(limit - #entries, 32)  -- in parts: entries may be large
  local part
  if back then part = redis.call('XREVRANGE', stream, from, '-', 'COUNT', count)
  else part = redis.call('XRANGE', stream, from, '+', 'COUNT', count) end
  for _, entry in ipairs(part) do
    for _, text in ipairs(entry[2]) do bytes = bytes + #text end
    if #entries > 0 and bytes > max_bytes then return {told(state()), entries} end
    entries[#entries + 1] = entry
  end
  if #part < count then break end
  from = '(' .. part[#part][1]
end
return {told(state()), entries}
""")

# Append a whole batch or nothing. KEYS after the stream: one for each idempotency key, in order. ARGV: the epoch, the
# lifetime of a key in seconds, and for each event whether it has a key, the number of its fields and values, and these.
# Returns the id and 1 (new) or 0 for each event; returns nothing if the epoch is another.
APPEND = Script("""
local found = state()
if found.epoch ~= ARGV[1] then return {} end
mend(found)
local placed, at, keys = {}, 3, 2
while at <= #ARGV do
  local has_key, size, id, is_new = ARGV[at] == '1', tonumber(ARGV[at + 1]), false, 1
  if has_key then id = redis.call('GET', KEYS[keys]) end
  if id then is_new = 0
  else
    id = redis.call('XADD', stream, '*', unpack(ARGV, at + 2, at + 1 + size))
    -- If the clock is set back, Redis continues to count in one millisecond; an offset has room for a million there.
    if is_full(id) then redis.call('XSETID', stream, next_ms(id)) end
    if has_key then redis.call('SET', KEYS[keys], id, 'EX', ARGV[2]) end
  end
  placed[#placed + 1] = id
  placed[#placed + 1] = is_new
  at = at + 2 + size
  if has_key then keys = keys + 1 end
end
return placed
""")

# Trim a part of the entries beyond the retention, oldest first, and return whether there may be more. ARGV: the epoch,
# the limits in events and bytes, the id up to which every entry is too old, and the id up to which entries may be
# trimmed at all.
TRIM = Script("""
local found = state()
if found.epoch ~= ARGV[1] then return 0 end
local group, max_events, max_bytes = prefix .. found.epoch, tonumber(ARGV[2]), tonumber(ARGV[3])
local mark, trimmed, length, more = found.forgotten, found.trimmed, found.length, 1

local function oldest(up_to, count)
  if count <= 0 then return {} end
  return redis.call('XRANGE', stream, '-', up_to, 'COUNT', math.min(100, count))
end

for _ = 1, 20 do
  local old = oldest(ARGV[4], length)
  if #old == 0 then
    local excess = length - max_events
    if excess <= 0 and length > 0 and redis.call('MEMORY', 'USAGE', stream) > max_bytes then
      excess = math.ceil(length / 10)
    end
    old = oldest(ARGV[5], excess)
  end
  if #old == 0 then more = 0 break end
  mark = old[#old][1]
  local gone = redis.call('XTRIM', stream, 'MINID', '=', add(mark, 1))
  trimmed, length = trimmed + gone, length - gone
end
if trimmed ~= found.marked then redis.call('XGROUP', 'SETID', stream, group, mark, 'ENTRIESREAD', trimmed) end
return more
""")
