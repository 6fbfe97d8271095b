-- Puts a value under a key, and adds the key to the index of its kind.
-- KEYS: the value; the keys of the kind, sorted by name; its expiring keys, sorted by their end; the bytes and the user
-- of each key; the bytes of each user; the bytes of all values; the expiring keys of all kinds, sorted by their end;
-- the lease (if the put is fenced).
-- ARGV: the key, the value, its time to live in ms or 0 for none, the token of the lease or an empty string, the bytes
-- that count towards the bounds, the user whose share the value counts towards or an empty string, the most bytes of a
-- user, the most bytes of all.
-- Returns 1, 0 if the token is not the newest, 2 if the value exceeds the user's share, or 3 if it exceeds the bound
-- for all users.
local value, names, ends = KEYS[1], KEYS[2], KEYS[3]
local sizes, users, total, all_ends = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local key, ttl = ARGV[1], tonumber(ARGV[3])
local bytes, user, user_max, total_max = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])

if ARGV[4] ~= '' and redis.call('HGET', KEYS[8], 'token') ~= ARGV[4] then return 0 end

-- The bytes of a key, and its user.
local function held(some_key)
  local size, owner = string.match(redis.call('HGET', sizes, some_key) or '', '^(%d+) (.*)$')
  return tonumber(size or '0'), owner or ''
end

local function give_back(some_key)
  local size, owner = held(some_key)
  if redis.call('HDEL', sizes, some_key) == 0 then return end
  redis.call('DECRBY', total, size)
  if owner ~= '' and redis.call('HINCRBY', users, owner, -size) <= 0 then redis.call('HDEL', users, owner) end
end

-- Keys of expired values are removed from the sets gradually: each put removes more keys than it adds.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
for _, ended in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, 16)) do
  redis.call('ZREM', names, ended)
  redis.call('ZREM', ends, ended)
end
for _, ended in ipairs(redis.call('ZRANGEBYSCORE', all_ends, '-inf', now, 'LIMIT', 0, 64)) do
  give_back(ended)
  redis.call('ZREM', all_ends, ended)
end

local before, owner = held(key)
if bytes > before or user ~= owner then
  local own = 0
  if user ~= '' then own = tonumber(redis.call('HGET', users, user) or '0') end
  if user == owner then own = own - before end
  if user ~= '' and own + bytes > user_max then return 2 end
  if tonumber(redis.call('GET', total) or '0') - before + bytes > total_max then return 3 end
end

if ttl > 0 then
  redis.call('SET', value, ARGV[2], 'PX', ttl)
  redis.call('ZADD', ends, now + ttl, key)
  redis.call('ZADD', all_ends, now + ttl, key)
else
  redis.call('SET', value, ARGV[2])
  redis.call('ZREM', ends, key)
  redis.call('ZREM', all_ends, key)
end
redis.call('ZADD', names, 0, key)
give_back(key)
redis.call('HSET', sizes, key, bytes .. ' ' .. user)
redis.call('INCRBY', total, bytes)
if user ~= '' then redis.call('HINCRBY', users, user, bytes) end
return 1
