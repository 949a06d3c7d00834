-- ARGV: owner, linger (ms), fence, ttl (us), limit. Returns a Renewal.

local fence, ttl = ARGV[3], tonumber(ARGV[4])
local HELD, REASSERTED, GONE, LOST = 1, 2, 3, 4

if is_listed(fence) then
  -- keep() first: a server out of memory refuses ZADD, unless the script has already written something.
  keep(now + ttl)
  redis.call('ZADD', holders, digits(now + ttl), owner)
  redis.call('HDEL', records, mark_of(owner))
  return HELD
end
if redis.call('ZSCORE', tombs, owner) then
  return LOST
end
if fence == '0' or redis.call('ZSCORE', tombs, barred(owner)) or not of_an_earlier_life(fence) then
  return GONE
end

-- include: queue
local limit = tonumber(ARGV[5])
-- Waiters that are back sooner than the holder wait on; only one that was offered a place has taken it.
purge()
if redis.call('ZCARD', holders) >= limit then
  bury(owner) -- the verdict stands, also when this answer does not arrive and the key is free at the next renewal
  return LOST
end

local life = redis.call('HMGET', meta, 'fence', 'epoch')
local counter = math.max(tonumber(life[1] or 0), tonumber(fence))
if life[2] then
  redis.call('HSET', meta, 'fence', digits(counter))
else
  -- Above this fence, so that the next lease of the same earlier life is known for one.
  counter = math.max(counter + 1, now)
  redis.call('HSET', meta, 'fence', digits(counter), 'epoch', digits(counter))
end
redis.call('ZADD', holders, digits(now + ttl), owner)
redis.call('HSET', records, owner, fence .. ' ' .. ARGV[5] .. ' {}')
keep(now + ttl)
return REASSERTED
