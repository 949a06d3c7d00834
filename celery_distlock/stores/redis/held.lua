-- The fence of the lease that the owner has, its time started anew, or of the offer made to it, which is confirmed by
-- this; false if it has none.
local function held()
  if not redis.call('ZSCORE', holders, owner) then
    return false
  end
  local known = redis.call('HGET', records, owner)
  redis.call('HDEL', records, mark_of(owner))
  local offered = redis.call('ZREM', deadlines, owner) == 1
  if not known then
    return grant()
  end
  local fence = string.match(known, '^%d+')
  redis.call('ZADD', holders, digits(now + ttl), owner)
  if offered then
    redis.call('HSET', records, owner, fence .. ' ' .. ARGV[4] .. ' ' .. record)
  end
  keep(now + ttl)
  return fence
end
