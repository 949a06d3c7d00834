-- For scripts that may grant. ARGV: owner, linger (ms), ttl (us), limit, record.

local ttl, limit, record = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]

local function grant()
  local fence = next_number()
  redis.call('ZADD', holders, digits(now + ttl), owner)
  redis.call('HSET', records, owner, fence .. ' ' .. ARGV[4] .. ' ' .. record)
  keep(now + ttl)
  return fence
end
