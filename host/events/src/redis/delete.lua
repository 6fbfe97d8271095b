-- Deletes a value, and its key among those of its kind.
-- KEYS: the value, the keys of the kind by name, those of them that end by their end, and, where the deletion is fenced, the lease.
-- ARGV: the key, the token of the lease or an empty text.
-- Returns 1, or 0 where the token is not the newest.
if ARGV[2] ~= '' and redis.call('HGET', KEYS[4], 'token') ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
