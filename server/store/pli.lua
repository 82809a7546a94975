#!lua name=pli

-- The atomic steps of the spool. Functions are atomic but not rolled back, so each one checks
-- everything (types, sizes, numbers, openings, window) before its first write.
--
-- A caller names one key; the others follow from its hash tag {campaign.shard}, so that nobody can pair
-- one shard's cursors with another one's window. What the caller's user may not touch stays refused.
--
-- Layouts, integers big-endian:
--   head     (cursors, field = pseudonym):          opening u32 | writer 16 | state u8 | kind u8
--   cursor   (cursors, field = pseudonym | writer): opening u32 | durable u64 | state u8 | token 16 |
--                                                   n u16 | n x (seq u64 | reason u8) | receipt
--   registry (field = pseudonym):                   kind u8 | seats u16 | status u8
--   epochs   (field = epoch id):                    last number u64 | last digest 32
--   headers  (field = epoch id):                    header
--   states: 1 live, 2 finished, 3 fenced (cursor of a pupil code only: a newer opening won)
--
-- A pupil code has one writer at a time, and its head finishes with it. A class code has several; each
-- has its own cursor, opening and end, and the head only counts openings.

local PHASE_OPEN, PHASE_CLOSING, PHASE_CLOSED = 2, 3, 4
local LIVE, FINISHED, FENCED = 1, 2, 3
local CLASS = 2
local STATUS_LIVE = 1
local MAX_BLOCK_BYTES = 1048576
local MAX_SESSIONS = 1000
local MAX_REJECTIONS = 4096
local MAX_UNPACKED = 2000 -- an even number; Lua's unpack breaks near 4000
local HEAD_BYTES = 22
local CURSOR = '>I4I8Bc16I2'
local CURSOR_BYTES = 31
local AFTER_TOKEN = 30 -- where the count of rejections begins

local function refuse(reason)
  return redis.error_reply('PLI ' .. reason)
end

-- The prefix that all keys of the shard of `key` share; nil when it is not called `name`.
local function tag_of(key, name)
  return string.match(key or '', '^({.+%.%d+}:)' .. name .. '$')
end

local function whole(text)
  local number = tonumber(text)
  if number and number >= 0 and number == math.floor(number) and number < 2 ^ 53 then return number end
  return nil
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- What the window lets through now; a missing window means closed. The spool's clock decides.
local function phase_now(window, now)
  local values = redis.call('HMGET', window, 'phase', 'closes', 'grace')
  local phase = tonumber(values[1] or PHASE_CLOSED)
  local closes, grace = tonumber(values[2] or 0), tonumber(values[3] or 0)
  if closes > 0 and (phase == PHASE_OPEN or phase == PHASE_CLOSING) then
    if now > closes + grace then return PHASE_CLOSED end
    if now > closes then return PHASE_CLOSING end
  end
  return phase
end

-- Verdicts of an opening, first byte of each entry in the reply.
local OPENED, READ_ONLY, REFUSED, CLOSED, NOT_OPEN, STALE, FULL = 0, 1, 2, 3, 4, 5, 6

local function opened(verdict, opening, seats, cursor, displaced)
  local durable, state, tail = 0, LIVE, struct.pack('>I2', 0)
  if cursor then
    durable, state = struct.unpack('>I8B', cursor, 5)
    tail = string.sub(cursor, AFTER_TOKEN)
  end
  return struct.pack('>BI4I8BI2B', verdict, opening, durable, state, seats, displaced) .. tail
end

local function verdict_only(verdict)
  return opened(verdict, 0, 0, nil, 0)
end

-- One code. Returns the reply entry; writes head and cursors when it opens anew.
local function open_one(names, phase, fresh, admit, pseudonym, writer, token)
  local registered = redis.call('HGET', names.registry, pseudonym)
  local found = redis.call('HMGET', names.cursors, pseudonym, pseudonym .. writer)
  local head, cursor = found[1], found[2]
  local kind, seats, status = 0, 0, 0
  if registered then kind, seats, status = struct.unpack('>BI2B', registered) end
  if phase == PHASE_CLOSED then
    if status == STATUS_LIVE and cursor then
      return opened(READ_ONLY, (struct.unpack('>I4', cursor)), seats, cursor, 0)
    end
    return verdict_only(CLOSED)
  end
  if phase ~= PHASE_OPEN and phase ~= PHASE_CLOSING then return verdict_only(NOT_OPEN) end
  if status ~= STATUS_LIVE then return verdict_only(REFUSED) end
  if not head then
    if phase == PHASE_CLOSING then return verdict_only(CLOSED) end
    if not admit then return verdict_only(FULL) end
    head = struct.pack('>I4c16BB', 0, writer, LIVE, kind)
  end
  local opening, current, state = struct.unpack('>I4c16B', head)
  if state == FINISHED and current ~= writer then return verdict_only(REFUSED) end
  if cursor then
    local mine, _, cursor_state, last_token = struct.unpack(CURSOR, cursor)
    if cursor_state == FINISHED then return opened(READ_ONLY, mine, seats, cursor, 0) end
    if cursor_state == LIVE and last_token == token then return opened(OPENED, mine, seats, cursor, 0) end
  end
  if not fresh then return verdict_only(STALE) end
  local displaced = 0
  local changed = {}
  if current ~= writer and kind ~= CLASS then
    displaced = 1
    local older = redis.call('HGET', names.cursors, pseudonym .. current)
    if older then
      changed[1] = pseudonym .. current
      changed[2] = string.sub(older, 1, 12) .. struct.pack('>B', FENCED) .. string.sub(older, 14)
    end
  end
  opening = opening + 1
  local durable, tail = string.rep('\0', 8), struct.pack('>I2', 0)
  if cursor then durable, tail = string.sub(cursor, 5, 12), string.sub(cursor, AFTER_TOKEN) end
  cursor = struct.pack('>I4', opening) .. durable .. struct.pack('>Bc16', LIVE, token) .. tail
  changed[#changed + 1] = pseudonym .. writer
  changed[#changed + 1] = cursor
  changed[#changed + 1] = pseudonym
  changed[#changed + 1] = struct.pack('>I4c16BB', opening, writer, LIVE, kind)
  redis.call('HSET', names.cursors, unpack(changed))
  if opening > 1 then
    redis.call('PUBLISH', names.superseded, pseudonym .. struct.pack('>I4', opening) .. writer)
  end
  return opened(OPENED, opening, seats, cursor, displaced)
end

-- KEYS: cursors. ARGV: node id (16), call number, valid until (ms), '1' where codes without a cursor are
-- let in, entries, each pseudonym 16 | writer 16 | token 16.
-- Calls of one node are numbered: a late copy of an older call opens nothing any more, and one that
-- arrives after its time neither. Reply: phase, then one entry per code.
local function open_session(keys, args)
  local tag = tag_of(keys[1], 'cursors')
  local node, number, valid_until, entries = args[1], whole(args[2]), whole(args[3]), args[5]
  if not tag or not entries or #node ~= 16 or not number or not valid_until or #entries % 48 ~= 0 then
    return refuse('MALFORMED')
  end
  if #entries > 48 * MAX_SESSIONS then return refuse('TOO_LARGE') end
  local names = { cursors = keys[1], registry = tag .. 'registry', superseded = tag .. 'superseded' }
  local now = now_ms()
  local phase = phase_now(tag .. 'window', now)
  local last = tonumber(redis.call('HGET', tag .. 'calls', node) or 0)
  redis.call('HLEN', names.cursors)
  redis.call('HLEN', names.registry)
  if number < last then return refuse('STALE') end
  local fresh = number > last and now <= valid_until
  if fresh then redis.call('HSET', tag .. 'calls', node, number) end
  local reply = { phase }
  for at = 1, #entries, 48 do
    reply[#reply + 1] = open_one(names, phase, fresh, args[4] == '1', string.sub(entries, at, at + 15),
      string.sub(entries, at + 16, at + 31), string.sub(entries, at + 32, at + 47))
  end
  return reply
end

-- The entries of a commit, taken apart; nil when they are not what they must be.
local function parse(entries, count)
  local parsed, seen, at = {}, {}, 1
  for index = 1, count do
    if at + 56 > #entries then return nil end
    local entry = {}
    local rejected, receipt_bytes
    entry.pseudonym, entry.writer, entry.opening, entry.first, entry.last, entry.finish, rejected, receipt_bytes, at =
      struct.unpack('>c16c16I4I8I8BI2I2', entries, at)
    entry.rejected = rejected
    entry.rejections = string.sub(entries, at, at + 9 * rejected - 1)
    at = at + 9 * rejected
    entry.receipt = string.sub(entries, at, at + receipt_bytes - 1)
    at = at + receipt_bytes
    entry.field = entry.pseudonym .. entry.writer
    if entry.last < entry.first or seen[entry.field] or (entry.finish ~= 1 and receipt_bytes > 0) then return nil end
    seen[entry.field] = true
    parsed[index] = entry
  end
  if at ~= #entries + 1 then return nil end
  return parsed
end

-- The opening that won over an entry's; 0 when none did and the entry is out of step with its cursor
-- (two streams under one token, a store that was restored): its session must open again.
local function winner(entry, head, cursor)
  local won = 0
  if cursor then won = struct.unpack('>I4', cursor) end
  if head and #head == HEAD_BYTES and struct.unpack('B', head, HEAD_BYTES) ~= CLASS then
    won = struct.unpack('>I4', head)
  end
  if won > entry.opening then return won end
  return 0
end

-- Judges each entry against its cursor. Returns the refused ones as pairs (number from 0, winning
-- opening), and what to write; or nil and the reason why the whole block is refused.
local function judge(cursors, parsed)
  local fields = {}
  for index, entry in ipairs(parsed) do fields[index] = entry.field end
  local found = redis.call('HMGET', cursors, unpack(fields))
  local refused, writes = {}, {}
  for index, entry in ipairs(parsed) do
    local cursor = found[index]
    local current = false
    if cursor then
      if #cursor < CURSOR_BYTES then return nil, 'CURSOR' end
      local opening, durable, state, token, n = struct.unpack(CURSOR, cursor)
      current = opening == entry.opening and state == LIVE and entry.first == durable + 1
        and n + entry.rejected <= MAX_REJECTIONS
      if current then
        local after = entry.finish == 1 and FINISHED or LIVE
        writes[#writes + 1] = entry.field
        writes[#writes + 1] = struct.pack(CURSOR, opening, entry.last, after, token, n + entry.rejected)
          .. string.sub(cursor, CURSOR_BYTES + 1, CURSOR_BYTES + 9 * n) .. entry.rejections .. entry.receipt
      end
    end
    if not current or entry.finish == 1 then
      local head = redis.call('HGET', cursors, entry.pseudonym)
      if not current then
        refused[#refused + 1] = index - 1
        refused[#refused + 1] = winner(entry, head, cursor)
      else
        if not head or #head ~= HEAD_BYTES then return nil, 'CURSOR' end
        if struct.unpack('B', head, HEAD_BYTES) ~= CLASS then
          writes[#writes + 1] = entry.pseudonym
          writes[#writes + 1] = string.sub(head, 1, 20) .. struct.pack('>B', FINISHED) .. string.sub(head, 22)
        end
      end
    end
  end
  return refused, writes
end

-- KEYS: cursors. ARGV: epoch id (16), number, digest (32), block, header or '', number of sessions,
-- their entries (layout in server/store/spool.py).
-- Reply: {'OK'}, {'CLOSED'}, {'SUPERSEDED', index, winning opening, …}; anything else is an error and
-- wrote nothing.
local function commit(keys, args)
  local tag = tag_of(keys[1], 'cursors')
  local epoch, number, digest, block, header = args[1], whole(args[2]), args[3], args[4], args[5]
  local count, entries = whole(args[6]), args[7]
  if not tag or not entries or #epoch ~= 16 or #digest ~= 32 or not number or not count or count < 1 then
    return refuse('MALFORMED')
  end
  if #block > MAX_BLOCK_BYTES or #entries > MAX_BLOCK_BYTES or #header > MAX_BLOCK_BYTES or count > MAX_SESSIONS then
    return refuse('TOO_LARGE')
  end
  local epochs, headers, spool = tag .. 'epochs', tag .. 'headers', tag .. 'spool'
  local last, last_digest = 0, nil
  local known = redis.call('HGET', epochs, epoch)
  if known then last, last_digest = struct.unpack('>I8c32', known) end
  if number == last and digest == last_digest then return { 'OK' } end
  if number ~= last + 1 then return refuse('NUMBER') end
  if (number == 1) ~= (header ~= '') then return refuse('HEADER') end
  local phase = phase_now(tag .. 'window', now_ms())
  if phase ~= PHASE_OPEN and phase ~= PHASE_CLOSING then return { 'CLOSED' } end
  redis.call('XLEN', spool)
  redis.call('HLEN', headers)
  local parsed = parse(entries, count)
  if not parsed then return refuse('MALFORMED') end
  local refused, writes = judge(keys[1], parsed)
  if not refused then return refuse(writes) end
  if #refused > 0 then return { 'SUPERSEDED', unpack(refused) } end
  if header ~= '' then
    redis.call('HSET', headers, epoch, header)
    redis.call('XADD', spool, '*', 'e', epoch, 'n', number, 'd', digest, 'b', block, 'h', header)
  else
    redis.call('XADD', spool, '*', 'e', epoch, 'n', number, 'd', digest, 'b', block)
  end
  redis.call('HSET', epochs, epoch, struct.pack('>I8c32', number, digest))
  for at = 1, #writes, MAX_UNPACKED do
    redis.call('HSET', keys[1], unpack(writes, at, math.min(at + MAX_UNPACKED - 1, #writes)))
  end
  return { 'OK' }
end

-- KEYS: window. ARGV: version, phase, opens, closes, grace. The version only rises, a closed window
-- stays closed, and CLOSED is reached by close_window alone. Reply: the version that holds now.
local function set_window(keys, args)
  local version, phase = whole(args[1]), whole(args[2])
  if not tag_of(keys[1], 'window') or not version or not phase or not whole(args[3]) or not whole(args[4])
    or not whole(args[5]) then
    return refuse('MALFORMED')
  end
  if phase < 1 or phase > PHASE_CLOSING then return refuse('PHASE') end
  local held = redis.call('HMGET', keys[1], 'version', 'phase')
  local current = tonumber(held[1] or 0)
  if version <= current or tonumber(held[2] or 0) == PHASE_CLOSED then return current end
  redis.call('HSET', keys[1], 'version', args[1], 'phase', args[2], 'opens', args[3], 'closes', args[4],
    'grace', args[5])
  return version
end

-- KEYS: window. ARGV: version. Flips the window for ever and appends the frozen table of epochs
-- (pli/closings.py) as the last entry of the Redis stream. Reply: {'CLOSED', number of epochs}, with 0
-- when it was closed before.
local function close_window(keys, args)
  local version, tag = whole(args[1]), tag_of(keys[1], 'window')
  if not version or not tag then return refuse('MALFORMED') end
  local campaign, shard = string.match(tag, '^{(.+)%.(%d+)}:$')
  if #campaign > 255 then return refuse('MALFORMED') end
  local held = redis.call('HMGET', keys[1], 'version', 'phase')
  if not held[1] then return refuse('NO_WINDOW') end
  if tonumber(held[2]) == PHASE_CLOSED then return { 'CLOSED', 0 } end
  local marker = redis.call('GET', tag .. 'marker')
  if not marker or #marker ~= 16 then return refuse('NO_MARKER') end
  redis.call('XLEN', tag .. 'spool')
  local table_of_epochs = redis.call('HGETALL', tag .. 'epochs')
  local rows = {}
  for at = 1, #table_of_epochs, 2 do rows[#rows + 1] = table_of_epochs[at] .. table_of_epochs[at + 1] end
  table.sort(rows)
  local closing = 'PLIC\1' .. struct.pack('>B', #campaign) .. campaign .. struct.pack('>I2', tonumber(shard)) .. marker
    .. struct.pack('>I4', #rows) .. table.concat(rows)
  redis.call('HSET', keys[1], 'version', math.max(version, tonumber(held[1])), 'phase', PHASE_CLOSED)
  redis.call('XADD', tag .. 'spool', '*', 'c', closing)
  return { 'CLOSED', #rows }
end

-- KEYS: spool. ARGV: consumer group, then pairs of entry id and digest ('closing' for the frozen table).
-- An entry whose digest differs stays. Reply: how many were removed.
local function remove(keys, args)
  if not tag_of(keys[1], 'spool') or #args % 2 ~= 1 then return refuse('MALFORMED') end
  for at = 2, #args, 2 do
    if not string.match(args[at], '^%d+%-%d+$') then return refuse('MALFORMED') end
  end
  redis.call('XLEN', keys[1])
  local removed = 0
  for at = 2, #args, 2 do
    local id, digest = args[at], args[at + 1]
    local entry = redis.call('XRANGE', keys[1], id, id)[1]
    if entry then
      local fields = entry[2]
      for field = 1, #fields, 2 do
        local same = fields[field] == 'd' and fields[field + 1] == digest
        if same or (fields[field] == 'c' and digest == 'closing') then
          redis.call('XACK', keys[1], args[1], id)
          removed = removed + redis.call('XDEL', keys[1], id)
          break
        end
      end
    else
      redis.call('XACK', keys[1], args[1], id)
    end
  end
  return removed
end

-- KEYS: spool. Reply: the id of the oldest entry, without its content; false when there is none.
local function oldest(keys)
  if not tag_of(keys[1], 'spool') then return refuse('MALFORMED') end
  local entry = redis.call('XRANGE', keys[1], '-', '+', 'COUNT', 1)[1]
  return entry and entry[1]
end

redis.register_function('pli_open_session', open_session)
redis.register_function('pli_commit', commit)
-- The same step where the store is at its memory limit: only for blocks without records.
redis.register_function{ function_name = 'pli_commit_rejections', callback = commit, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'pli_set_window', callback = set_window, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'pli_close_window', callback = close_window, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'pli_remove', callback = remove, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'pli_oldest', callback = oldest, flags = { 'no-writes' } }
