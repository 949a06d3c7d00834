-- For scripts that may grant. ARGV: owner, linger (ms), ttl (us), limit, record.

local ttl, limit, record = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]

local function grant()
  local fence = next_number()
  redis.call('ZADD', holders, digits(now + ttl), owner)
  redis.call('HSET', records, owner, fence .. ' ' .. ARGV[4] .. ' ' .. record)
  keep(now + ttl)
  return fence
end

-- The fence of the lease that the owner has, its time started anew, or of the offer made to it, which is confirmed by
-- this; false if it has none.
local function held()
  if not redis.call('ZSCORE', holders, owner) then
    return false
  end
  local known = redis.call('HGET', records, owner)
  redis.call('HDEL', records, mark_of(owner), told_by(owner))
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
