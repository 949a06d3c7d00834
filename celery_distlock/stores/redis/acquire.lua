-- ARGV: owner, linger (ms), ttl (us), limit, record, grace (us). KEYS[7], if given: the completion record.
-- Returns the fence: granted. 1: completed. {wait (us), now, owner, expiry, record, ...}: contended; with a wait
-- above 0: ask again after it, a place may be had then.

local ttl, limit, record, grace = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local NAMED = 10

local function grant()
  local life = redis.call('HMGET', meta, 'fence', 'epoch')
  local fence = digits(math.max(tonumber(life[1] or 0) + 1, now))
  if life[2] then
    redis.call('HSET', meta, 'fence', fence)
  else
    redis.call('HSET', meta, 'fence', fence, 'epoch', fence)
  end
  redis.call('ZADD', holders, digits(now + ttl), owner)
  redis.call('HSET', records, owner, fence .. ' ' .. ARGV[4] .. ' ' .. record)
  keep(now + ttl)
  return fence
end

local function contended(wait)
  local answer = {wait, digits(now)}
  local listed = redis.call('ZRANGE', holders, 0, NAMED - 1, 'WITHSCORES')
  local owners = {}
  for i = 1, #listed, 2 do
    owners[#owners + 1] = listed[i]
  end
  local known = #owners > 0 and redis.call('HMGET', records, unpack(owners)) or {}
  for i = 1, #owners do
    answer[#answer + 1] = owners[i]
    answer[#answer + 1] = digits(tonumber(listed[2 * i]))
    answer[#answer + 1] = known[i] or ''
  end
  return answer
end

if KEYS[7] and redis.call('EXISTS', KEYS[7]) == 1 then
  return 1
end

if redis.call('EXISTS', holders, waiters, tombs) == 0 then
  return grant()
end

if redis.call('ZSCORE', holders, owner) then
  local known = redis.call('HGET', records, owner)
  redis.call('HDEL', records, mark_of(owner))
  if not known then
    return grant()
  end
  redis.call('ZADD', holders, digits(now + ttl), owner)
  keep(now + ttl)
  return string.match(known, '^%d+')
end

if redis.call('ZSCORE', tombs, owner) or redis.call('ZSCORE', tombs, barred(owner)) then
  return contended(0)
end

purge_waiters()
local ahead = redis.call('ZRANK', waiters, owner) or redis.call('ZCARD', waiters)
local believed = redis.call('ZCOUNT', holders, '(' .. digits(now), '+inf')
if believed + ahead >= limit then
  return contended(0)
end

-- Fewer than limit are believed, so the first ones by expiry, as many as are too many, have all expired.
local surplus = redis.call('ZCARD', holders) - limit + 1
if surplus > 0 then
  -- In two steps: after the server itself was stopped, renewals of live holders are waiting in its sockets beside
  -- this command, and whichever is read first must not decide.
  local silent = redis.call('ZRANGE', holders, 0, surplus - 1)
  local wait = 0
  for _, holder in ipairs(silent) do
    local marked = tonumber(redis.call('HGET', records, mark_of(holder)) or nil)
    if not marked or marked > now then
      redis.call('HSET', records, mark_of(holder), digits(now))
      marked = now
    end
    wait = math.max(wait, marked + grace - now)
  end
  if wait > 0 then
    keep(now)
    return contended(wait)
  end
  for _, holder in ipairs(silent) do
    redis.call('ZREM', holders, holder)
    redis.call('HDEL', records, holder, mark_of(holder))
    bury(holder)
  end
end

redis.call('ZREM', waiters, owner)
redis.call('ZREM', deadlines, owner)
return grant()
