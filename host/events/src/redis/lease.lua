-- Acquires, renews or releases a lease by the server's clock.
-- KEYS: the lease, the newest token of all leases.
-- ARGV: `acquire`, `renew` or `release`; the owner for `acquire`, otherwise the token; the duration of the lease in ms;
-- how long it is stored after its end and after its release, in ms; then owners that abandoned an acquisition that may
-- have succeeded.
-- Returns { 'ok', token }, { 'held', ms until it ends }, or { 'fenced', 0 } if the token is not the newest.
local lease, newest = KEYS[1], KEYS[2]
local action, holder, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now = math.floor(now_us / 1000)

local function text(number) return string.format('%.0f', number) end

local function last_from_now(ms)
  redis.call('HSET', lease, 'end', text(now + ms), 'ttl', text(ms))
  redis.call('PEXPIRE', lease, text(ms + tonumber(ARGV[4])))
end

if action == 'acquire' then
  local held = redis.call('HMGET', lease, 'owner', 'end', 'ttl')
  local given_up = held[1] == holder
  for at = 6, #ARGV do given_up = given_up or held[1] == ARGV[at] end
  if held[1] and not given_up then
    local left, most = tonumber(held[2]) - now, tonumber(held[3])
    if left > most then
      -- The clock was set back. The lease ends no later than it would from now.
      redis.call('HSET', lease, 'end', text(now + most))
      left = most
    end
    if left > 0 then return { 'held', left } end
  end
  -- Greater than all tokens before it, even if the server has lost the newest one.
  local token = math.max(tonumber(redis.call('GET', newest) or '0') + 1, now_us)
  redis.call('SET', newest, text(token))
  redis.call('HSET', lease, 'token', text(token), 'owner', holder)
  last_from_now(ttl)
  return { 'ok', token }
end

if redis.call('HGET', lease, 'token') ~= holder then return { 'fenced', 0 } end
if action == 'renew' then
  last_from_now(ttl)
else
  redis.call('HSET', lease, 'end', text(now), 'ttl', '0')
  redis.call('PEXPIRE', lease, ARGV[5])
end
return { 'ok', 0 }
