-- Puts a value under a key, and the key among those of its kind.
-- KEYS: the value, the keys of the kind by name, those of them that end by their end, and, where the put is fenced, the lease.
-- ARGV: the key, the value, how long it stays in ms or 0 for as long as it is not deleted, the token of the lease or an empty text.
-- Returns 1, or 0 where the token is not the newest.
local value, names, ends = KEYS[1], KEYS[2], KEYS[3]
local key, ttl = ARGV[1], tonumber(ARGV[3])

if ARGV[4] ~= '' and redis.call('HGET', KEYS[4], 'token') ~= ARGV[4] then return 0 end

-- Keys whose values ended go from the lists bit by bit: each put takes away more than it can add.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
for _, ended in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, 16)) do
  redis.call('ZREM', names, ended)
  redis.call('ZREM', ends, ended)
end

if ttl > 0 then
  redis.call('SET', value, ARGV[2], 'PX', ttl)
  redis.call('ZADD', ends, now + ttl, key)
else
  redis.call('SET', value, ARGV[2])
  redis.call('ZREM', ends, key)
end
redis.call('ZADD', names, 0, key)
return 1
