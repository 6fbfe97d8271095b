-- Appends events to a stream, all or none, and removes events beyond retention.
-- KEYS: the stream, its metadata, the lease (if the append is fenced), the stream and the metadata of the channel's
-- owner record, whose time to live is renewed.
-- ARGV: the server's run id, a fresh epoch, 1 if restarts lose no data, the most events, the most bytes, the most age
-- in ms, the time to live of the metadata in ms, the token of the lease or an empty string, the prefix of all keys, the
-- name of the channel, the user whose share a new channel counts towards or an empty string, the most channels of a
-- user, then for each event: name, data, coalescing key, 1 if it is the last of the channel.
-- The channels of a user are a sorted set by the time at which their events are too old.
-- Returns { 'ok', epoch, first sequence, last sequence }, { 'finished' }, { 'fenced' }, or { 'epoch', latest epoch } if
-- a later fresh epoch is needed.
local stream, meta_key = KEYS[1], KEYS[2]
local run, fresh, keeps = ARGV[1], ARGV[2], ARGV[3] == '1'
local events_max, bytes_max, age_max = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

if ARGV[8] ~= '' and redis.call('HGET', KEYS[3], 'token') ~= ARGV[8] then return { 'fenced' } end

-- Epochs have more digits than a Lua number can represent exactly.
local function later(a, b)
  if #a ~= #b then return #a > #b end
  return a > b
end

local meta = redis.call('HMGET', meta_key, 'epoch', 'seq', 'run', 'finished', 'bytes')
if meta[4] == '1' then return { 'finished' } end
local epoch, seq, bytes = meta[1], tonumber(meta[2] or '0'), tonumber(meta[5] or '0')
-- A server that was restarted may have lost events that readers have seen.
if not epoch or (meta[3] ~= run and not keeps) then
  if epoch and not later(fresh, epoch) then return { 'epoch', epoch } end
  epoch, seq = fresh, 0
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local count = (#ARGV - 12) / 4
local prefix, channel, user, channels_max = ARGV[9], ARGV[10], ARGV[11], tonumber(ARGV[12])
local function channels_of(some_user) return prefix .. '@@user-channels:' .. some_user end
-- A channel that has events stays its user's.
local new = redis.call('EXISTS', stream) == 0
if not new then user = redis.call('HGET', meta_key, 'user') or '' end
local finished = '0'

local function add(id, name, data, key, finishes)
  redis.call('XADD', stream, 'MAXLEN', '=', events_max + count, id, 'event', name, 'data', data,
    'time', string.format('%.0f', now), 'coalesce', key, 'finish', finishes)
end

local function latest()
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return string.match(info[i + 1], '^(%d+)-(%d+)$') end
  end
end

-- Another program may have added entries to the stream: their ids are holes in the sequence.
if redis.call('EXISTS', stream) == 1 then
  local taken_epoch, taken_seq = latest()
  -- Sequences may have more digits than a Lua number can represent exactly, too: an epoch with such a sequence is not
  -- continued.
  local near_end = #taken_seq > 15
  if taken_epoch == epoch and not near_end then
    seq = math.max(seq, tonumber(taken_seq))
  elseif taken_epoch == epoch or later(taken_epoch, epoch) then
    if not later(fresh, taken_epoch) then return { 'epoch', taken_epoch } end
    epoch, seq = fresh, 0
  end
end
local first = seq + 1
for i = 0, count - 1 do
  local at = 13 + i * 4
  local name, data, key, finishes = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  seq = seq + 1
  local id = epoch .. '-' .. string.format('%.0f', seq)
  add(id, name, data, key, finishes)
  bytes = bytes + 128 + #name + #data + #key
  if finishes == '1' then finished = '1' end
end

local length = redis.call('XLEN', stream)
local cut, keep, done = '-', nil, false
while not done do
  local head = redis.call('XRANGE', stream, cut, '+', 'COUNT', 16)
  if #head == 0 then break end
  for _, entry in ipairs(head) do
    local size, at = 128, now
    for i = 1, #entry[2], 2 do
      local field, value = entry[2][i], entry[2][i + 1]
      if field == 'time' then at = tonumber(value) or now end
      if field == 'event' or field == 'data' or field == 'coalesce' then size = size + #value end
    end
    if length > 1 and (length > events_max or bytes > bytes_max or now - at > age_max) then
      length, bytes, cut = length - 1, math.max(bytes - size, 0), '(' .. entry[1]
    else
      keep, done = entry[1], true
      break
    end
  end
end
if keep and cut ~= '-' then redis.call('XTRIM', stream, 'MINID', '=', keep) end
redis.call('HSET', meta_key, 'epoch', epoch, 'seq', string.format('%.0f', seq), 'run', run, 'finished', finished,
  'bytes', string.format('%.0f', bytes))
redis.call('PEXPIRE', stream, ARGV[6])
redis.call('PEXPIRE', meta_key, ARGV[7])
redis.call('PEXPIRE', KEYS[4], ARGV[6])
redis.call('PEXPIRE', KEYS[5], ARGV[7])
if user ~= '' then
  local mine = channels_of(user)
  redis.call('ZREMRANGEBYSCORE', mine, '-inf', now)
  redis.call('ZADD', mine, now + age_max, channel)
  redis.call('PEXPIRE', mine, ARGV[6])
  redis.call('HSET', meta_key, 'user', user)
  -- Channels beyond the share are deleted, the least recently used first. Their metadata stays, so that followers get a
  -- gap.
  local over = math.min(redis.call('ZCARD', mine) - channels_max, 16)
  for _, victim in ipairs(over > 0 and redis.call('ZRANGE', mine, 0, over) or {}) do
    if over > 0 and victim ~= channel then
      over = over - 1
      redis.call('DEL', prefix .. victim)
      redis.call('ZREM', mine, victim)
      local victim_known = prefix .. '@' .. victim
      if redis.call('EXISTS', victim_known) == 1 then redis.call('HSET', victim_known, 'bytes', '0') end
    end
  end
elseif new then
  redis.call('HDEL', meta_key, 'user')
end
return { 'ok', epoch, string.format('%.0f', first), string.format('%.0f', seq) }
