-- ARGV: owner, linger (ms), fence, ttl of the completion record (ms), µs for which the place stays taken, if any.
-- KEYS[8], if given: the completion record.
-- Returns 1: released. 0: was not listed. -1: its place had been given away.

local fence = ARGV[3]

local known = is_listed(fence)
if known then
  redis.call('ZREM', holders, owner)
  redis.call('HDEL', records, owner, mark_of(owner))
  if ARGV[5] then
    local free = now + tonumber(ARGV[5])
    redis.call('ZADD', holders, digits(free), resting(owner))
    redis.call('HSET', records, resting(owner), known)
    if redis.call('ZCARD', holders) == 1 then
      redis.call('PEXPIREAT', holders, digits(math.ceil(free / 1000)))
      redis.call('PEXPIREAT', records, digits(math.ceil(free / 1000)))
    else
      keep(free)
    end
  end
end
if fence == '0' then
  redis.call('ZREM', waiters, owner)
  redis.call('ZREM', deadlines, owner)
  redis.call('HDEL', wishes, owner)
end
-- Also for a lease that was lost meanwhile: the record says that the work was done, not who may do it.
if KEYS[8] then
  redis.call('SET', KEYS[8], '1', 'PX', ARGV[4])
end
-- An acquire of unknown outcome (fence 0, below every epoch) may still be under way, and a renewal under way would
-- re-assert a lease of an earlier life: neither may bring back what is released here.
if of_an_earlier_life(fence) then
  bury(barred(owner))
end
local answer = known and 1 or redis.call('ZSCORE', tombs, owner) and -1 or 0
if redis.call('EXISTS', waiters, deadlines) == 0 then
  return answer
end

-- include: queue
purge()
settle(nil, known and string.match(known, '^%d+ 1 '))
return answer
