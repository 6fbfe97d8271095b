-- Lists keys of a kind that have a value, in the order of their bytes.
-- KEYS: the keys of the kind, sorted by name; its expiring keys, sorted by their end; the bytes and the user of each
-- key; the bytes of each user; the bytes of all values; the expiring keys of all kinds, sorted by their end.
-- ARGV: the prefix of the keys of values, the start of the list (`-` or `(KEY`), the most keys.
local names, ends = KEYS[1], KEYS[2]
local sizes, users, total, all_ends = KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local prefix, from, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local live = {}
while #live < limit do
  local some = redis.call('ZRANGEBYLEX', names, from, '+', 'LIMIT', 0, limit - #live)
  if #some == 0 then break end
  for _, key in ipairs(some) do
    if redis.call('EXISTS', prefix .. key) == 1 then
      live[#live + 1] = key
    else
      -- It expired, or the server evicted it.
      redis.call('ZREM', names, key)
      redis.call('ZREM', ends, key)
      redis.call('ZREM', all_ends, key)
      local size, owner = string.match(redis.call('HGET', sizes, key) or '', '^(%d+) (.*)$')
      if size then
        redis.call('HDEL', sizes, key)
        redis.call('DECRBY', total, size)
        if owner ~= '' and redis.call('HINCRBY', users, owner, -tonumber(size)) <= 0 then redis.call('HDEL', users, owner) end
      end
    end
  end
  from = '(' .. some[#some]
end
return live
