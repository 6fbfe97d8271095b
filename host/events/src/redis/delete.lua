-- Deletes a value, and its key from the index of its kind.
-- KEYS: the value; the keys of the kind, sorted by name; its expiring keys, sorted by their end; the bytes and the user
-- of each key; the bytes of each user; the bytes of all values; the expiring keys of all kinds, sorted by their end;
-- the lease (if the deletion is fenced).
-- ARGV: the key, the token of the lease or an empty string.
-- Returns 1, or 0 if the token is not the newest.
local sizes, users, total, all_ends = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
if ARGV[2] ~= '' and redis.call('HGET', KEYS[8], 'token') ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', all_ends, ARGV[1])
local size, owner = string.match(redis.call('HGET', sizes, ARGV[1]) or '', '^(%d+) (.*)$')
if size then
  redis.call('HDEL', sizes, ARGV[1])
  redis.call('DECRBY', total, size)
  if owner ~= '' and redis.call('HINCRBY', users, owner, -tonumber(size)) <= 0 then redis.call('HDEL', users, owner) end
end
return 1
