#!lua name=pli

-- The atomic steps of the spool (docs/spool.md). Functions are atomic but not rolled back, so each one
-- checks everything (types, sizes, numbers, openings, window) before its first write.
--
-- Layouts, integers big-endian:
--   head    (cursors, field = pseudonym):          opening u32 | writer 16 | token 16 | state u8 | kind u8
--   cursor  (cursors, field = pseudonym | writer): opening u32 | durable u64 | state u8 | n u16 |
--                                                  n x (seq u64 | reason u8) | receipt
--   registry (field = pseudonym):                  kind u8 | seats u16 | status u8
--   epochs  (field = epoch id):                    last number u64 | last digest 32
--           (field = epoch id | "h"):              header
--   states: 1 live, 2 finished, 3 fenced (cursor only: a newer opening won)

local PHASE_OPEN, PHASE_CLOSING, PHASE_CLOSED = 2, 3, 4
local LIVE, FINISHED, FENCED = 1, 2, 3
local MAX_BLOCK_BYTES = 1048576
local MAX_SESSIONS = 1000
local MAX_REJECTIONS = 4096
local MAX_UNPACKED = 2000 -- an even number; Lua's unpack breaks near 4000

local function refuse(reason)
  return redis.error_reply('PLI ' .. reason)
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
    tail = string.sub(cursor, 14)
  end
  return struct.pack('>BI4I8BI2B', verdict, opening, durable, state, seats, displaced) .. tail
end

local function verdict_only(verdict)
  return opened(verdict, 0, 0, nil, 0)
end

-- One code. Returns the reply entry; writes head and cursors when it opens anew.
local function open_one(keys, phase, fresh, admit, node, pseudonym, writer, token)
  local registered = redis.call('HGET', keys.registry, pseudonym)
  local found = redis.call('HMGET', keys.cursors, pseudonym, pseudonym .. writer)
  local head, cursor = found[1], found[2]
  if phase == PHASE_CLOSED then
    if registered and head and cursor then
      return opened(READ_ONLY, (struct.unpack('>I4', cursor)), 0, cursor, 0)
    end
    return verdict_only(CLOSED)
  end
  if phase ~= PHASE_OPEN and phase ~= PHASE_CLOSING then return verdict_only(NOT_OPEN) end
  if not registered then return verdict_only(REFUSED) end
  local kind, seats, status = struct.unpack('>BI2B', registered)
  if status ~= 1 then return verdict_only(REFUSED) end
  if not head then
    if phase == PHASE_CLOSING then return verdict_only(CLOSED) end
    if not admit then return verdict_only(FULL) end
    if not fresh then return verdict_only(STALE) end
    head = struct.pack('>I4c16c16BB', 1, writer, token, LIVE, kind)
    cursor = struct.pack('>I4I8BI2', 1, 0, LIVE, 0)
    redis.call('HSET', keys.cursors, pseudonym, head, pseudonym .. writer, cursor)
    return opened(OPENED, 1, seats, cursor, 0)
  end
  local opening, current, last_token, state = struct.unpack('>I4c16c16B', head)
  if state == FINISHED then
    if current ~= writer then return verdict_only(REFUSED) end
    return opened(READ_ONLY, opening, seats, cursor, 0)
  end
  if last_token == token and current == writer then
    return opened(OPENED, opening, seats, cursor, 0)
  end
  if not fresh then return verdict_only(STALE) end
  local displaced = 0
  local changed = {}
  if current ~= writer then
    displaced = 1
    local older = redis.call('HGET', keys.cursors, pseudonym .. current)
    if older then
      changed[1] = pseudonym .. current
      changed[2] = string.sub(older, 1, 12) .. struct.pack('>B', FENCED) .. string.sub(older, 14)
    end
  end
  opening = opening + 1
  if cursor then
    cursor = struct.pack('>I4', opening) .. string.sub(cursor, 5, 12) .. struct.pack('>B', LIVE)
      .. string.sub(cursor, 14)
  else
    cursor = struct.pack('>I4I8BI2', opening, 0, LIVE, 0)
  end
  changed[#changed + 1] = pseudonym .. writer
  changed[#changed + 1] = cursor
  changed[#changed + 1] = pseudonym
  changed[#changed + 1] = struct.pack('>I4c16c16BB', opening, writer, token, LIVE, kind)
  redis.call('HSET', keys.cursors, unpack(changed))
  redis.call('PUBLISH', keys.superseded, pseudonym .. struct.pack('>I4', opening) .. node)
  return opened(OPENED, opening, seats, cursor, displaced)
end

-- KEYS: window, cursors, registry, calls. ARGV: channel, node id (16), call number, valid until (ms),
-- '1' where codes without a cursor are let in, entries, each pseudonym 16 | writer 16 | token 16.
-- Calls of one node are numbered: a late copy of an older call opens nothing any more, and one that
-- arrives after its time neither. Reply: phase, then one entry per code.
local function open_session(keys, args)
  local channel, node, number, valid_until = args[1], args[2], tonumber(args[3]), tonumber(args[4])
  local admit, entries = args[5] == '1', args[6]
  if #node ~= 16 or not number or not valid_until or #entries % 48 ~= 0 then return refuse('MALFORMED') end
  if #entries > 48 * MAX_SESSIONS then return refuse('TOO_LARGE') end
  local now = now_ms()
  local phase = phase_now(keys[1], now)
  local last = tonumber(redis.call('HGET', keys[4], node) or 0)
  redis.call('HLEN', keys[2])
  redis.call('HLEN', keys[3])
  if number < last then return refuse('STALE') end
  local fresh = number > last and now <= valid_until
  if fresh then redis.call('HSET', keys[4], node, number) end
  local names = { cursors = keys[2], registry = keys[3], superseded = channel }
  local reply = { phase }
  for at = 1, #entries, 48 do
    reply[#reply + 1] = open_one(names, phase, fresh, admit, node, string.sub(entries, at, at + 15),
      string.sub(entries, at + 16, at + 31), string.sub(entries, at + 32, at + 47))
  end
  return reply
end

-- Takes the entries of a commit apart and judges each against its cursor. Returns the list of
-- superseded entries (numbers from 0), or what to write, or the reason of a refusal.
local function judge(cursors, entries, count)
  local fields, parsed, at = {}, {}, 1
  for index = 1, count do
    if at + 56 > #entries then return nil, nil, 'MALFORMED' end
    local pseudonym, writer, opening, first, last, finish, rejected, receipt_bytes
    pseudonym, writer, opening, first, last, finish, rejected, receipt_bytes, at =
      struct.unpack('>c16c16I4I8I8BI2H', entries, at)
    local tail = string.sub(entries, at, at + 9 * rejected - 1)
    at = at + 9 * rejected
    local receipt = string.sub(entries, at, at + receipt_bytes - 1)
    at = at + receipt_bytes
    parsed[index] = { pseudonym, writer, opening, first, last, finish, rejected, tail, receipt }
    fields[index] = pseudonym .. writer
  end
  if at ~= #entries + 1 then return nil, nil, 'MALFORMED' end
  local found = redis.call('HMGET', cursors, unpack(fields))
  local superseded, writes = {}, {}
  for index = 1, count do
    local entry, cursor = parsed[index], found[index]
    local current = false
    if cursor then
      local opening, durable, state, n = struct.unpack('>I4I8BI2', cursor)
      if opening == entry[3] and state == LIVE then
        current = true
        if entry[4] ~= durable + 1 or entry[5] < entry[4] then return nil, nil, 'GAP' end
        if n + entry[7] > MAX_REJECTIONS then return nil, nil, 'REJECTIONS' end
        local tail = entry[8]
        if n > 0 then tail = string.sub(cursor, 16, 15 + 9 * n) .. tail end
        local after = LIVE
        if entry[6] == 1 then after = FINISHED end
        writes[#writes + 1] = fields[index]
        writes[#writes + 1] = struct.pack('>I4I8BI2', entry[3], entry[5], after, n + entry[7]) .. tail .. entry[9]
        if entry[6] == 1 then
          local head = redis.call('HGET', cursors, entry[1])
          if not head or #head ~= 38 then return nil, nil, 'MALFORMED' end
          writes[#writes + 1] = entry[1]
          writes[#writes + 1] = string.sub(head, 1, 36) .. struct.pack('>B', FINISHED) .. string.sub(head, 38)
        end
      end
    end
    if not current then superseded[#superseded + 1] = index - 1 end
  end
  return superseded, writes, nil
end

-- KEYS: window, epochs, cursors, spool. ARGV: epoch id (16), number, digest (32), block, header or '',
-- number of sessions, their entries (layout in server/store/spool.py).
-- Reply: {'OK'}, {'SUPERSEDED', index …}, {'CLOSED'}; anything else is an error and wrote nothing.
local function commit(keys, args)
  local epoch, number, digest, block, header = args[1], tonumber(args[2]), args[3], args[4], args[5]
  local count, entries = tonumber(args[6]), args[7]
  if #epoch ~= 16 or #digest ~= 32 or not number or not count then return refuse('MALFORMED') end
  if #block > MAX_BLOCK_BYTES or count > MAX_SESSIONS then return refuse('TOO_LARGE') end
  local last, last_digest = 0, nil
  local known = redis.call('HGET', keys[2], epoch)
  if known then last, last_digest = struct.unpack('>I8c32', known) end
  if number == last and digest == last_digest then return { 'OK' } end
  if number ~= last + 1 then return refuse('NUMBER') end
  if (number == 1) ~= (header ~= '') then return refuse('HEADER') end
  local phase = phase_now(keys[1], now_ms())
  if phase ~= PHASE_OPEN and phase ~= PHASE_CLOSING then return { 'CLOSED' } end
  redis.call('XLEN', keys[4])
  local superseded, writes, fault = judge(keys[3], entries, count)
  if fault then return refuse(fault) end
  if #superseded > 0 then
    local reply = { 'SUPERSEDED' }
    for _, index in ipairs(superseded) do reply[#reply + 1] = index end
    return reply
  end
  if header ~= '' then
    redis.call('XADD', keys[4], '*', 'e', epoch, 'n', number, 'd', digest, 'b', block, 'h', header)
    redis.call('HSET', keys[2], epoch, struct.pack('>I8c32', number, digest), epoch .. 'h', header)
  else
    redis.call('XADD', keys[4], '*', 'e', epoch, 'n', number, 'd', digest, 'b', block)
    redis.call('HSET', keys[2], epoch, struct.pack('>I8c32', number, digest))
  end
  for at = 1, #writes, MAX_UNPACKED do
    redis.call('HSET', keys[3], unpack(writes, at, math.min(at + MAX_UNPACKED - 1, #writes)))
  end
  return { 'OK' }
end

-- KEYS: window. ARGV: version, phase, opens, closes, grace. The version only rises, a closed window
-- stays closed, and CLOSED is reached by close_window alone. Reply: the version that holds now.
local function set_window(keys, args)
  local version, phase = tonumber(args[1]), tonumber(args[2])
  local opens, closes, grace = tonumber(args[3]), tonumber(args[4]), tonumber(args[5])
  if not version or not phase or not opens or not closes or not grace then return refuse('MALFORMED') end
  if phase < 1 or phase > PHASE_CLOSING then return refuse('PHASE') end
  local held = redis.call('HMGET', keys[1], 'version', 'phase')
  local current = tonumber(held[1] or 0)
  if version <= current or tonumber(held[2] or 0) == PHASE_CLOSED then return current end
  redis.call('HSET', keys[1], 'version', args[1], 'phase', args[2], 'opens', args[3], 'closes', args[4],
    'grace', args[5])
  return version
end

-- KEYS: window, epochs, spool, marker. ARGV: version, campaign id, shard. Flips the window for ever and
-- appends the frozen table of epochs (pli/closings.py) as the last entry of the Redis stream.
local function close_window(keys, args)
  local version, campaign, shard = tonumber(args[1]), args[2], tonumber(args[3])
  if not version or not shard or #campaign > 255 then return refuse('MALFORMED') end
  local held = redis.call('HMGET', keys[1], 'version', 'phase')
  if not held[1] then return refuse('NO_WINDOW') end
  if tonumber(held[2]) == PHASE_CLOSED then return { 'CLOSED', 0 } end
  local marker = redis.call('GET', keys[4])
  if not marker or #marker ~= 16 then return refuse('NO_MARKER') end
  redis.call('XLEN', keys[3])
  local table_of_epochs = redis.call('HGETALL', keys[2])
  local rows = {}
  for at = 1, #table_of_epochs, 2 do
    if #table_of_epochs[at] == 16 then rows[#rows + 1] = table_of_epochs[at] .. table_of_epochs[at + 1] end
  end
  table.sort(rows)
  local closing = 'PLIC\1' .. struct.pack('>B', #campaign) .. campaign .. struct.pack('>I2', shard) .. marker
    .. struct.pack('>I4', #rows) .. table.concat(rows)
  redis.call('HSET', keys[1], 'version', math.max(version, tonumber(held[1])), 'phase', PHASE_CLOSED)
  redis.call('XADD', keys[3], '*', 'c', closing)
  return { 'CLOSED', #rows }
end

-- KEYS: spool. ARGV: consumer group, then pairs of entry id and digest. An entry whose digest differs
-- stays. Reply: how many were removed.
local function remove(keys, args)
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

redis.register_function('pli_open_session', open_session)
redis.register_function('pli_commit', commit)
-- The same step where the store is at its memory limit: only for blocks without records.
redis.register_function{ function_name = 'pli_commit_rejections', callback = commit, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'pli_set_window', callback = set_window, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'pli_close_window', callback = close_window, flags = { 'allow-oom' } }
redis.register_function{ function_name = 'pli_remove', callback = remove, flags = { 'allow-oom' } }
