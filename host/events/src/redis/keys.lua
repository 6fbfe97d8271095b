-- Lists keys of a kind that have a value, in the order of their bytes.
-- KEYS: the keys of the kind by name, those of them that end by their end.
-- ARGV: what the keys of values begin with, where the list begins (`-` or `(KEY`), the most keys.
local names, ends = KEYS[1], KEYS[2]
local prefix, from, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local live = {}
while #live < limit do
  local some = redis.call('ZRANGEBYLEX', names, from, '+', 'LIMIT', 0, limit - #live)
  if #some == 0 then break end
  for _, key in ipairs(some) do
    if redis.call('EXISTS', prefix .. key) == 1 then
      live[#live + 1] = key
    else
      -- It ended, or the server let go of it.
      redis.call('ZREM', names, key)
      redis.call('ZREM', ends, key)
    end
  end
  from = '(' .. some[#some]
end
return live
