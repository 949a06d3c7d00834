-- For scripts that tell waiters how they stand.

-- 0 and more: so many wait before it. -1: not in the line. Below: has been offered a place, for (-2 - code) µs.
local function code_of(who)
  local ahead = redis.call('ZRANK', waiters, who)
  if ahead then
    return ahead
  end
  local expiry = redis.call('ZSCORE', holders, who)
  return expiry and -2 - math.max(0, tonumber(expiry) - now) or -1
end

-- µs until the next thing happens without a word to anybody: a lease or an offer expires, a waiter is taken for gone, or
-- what settle() knows of (0: nothing does).
local function look_again(again)
  local overdue = redis.call('ZRANGE', deadlines, 0, 0, 'WITHSCORES')[2]
  local expires = redis.call('ZRANGEBYSCORE', holders, '(' .. digits(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  for _, at in ipairs({overdue or '0', expires or '0'}) do
    local left = tonumber(at) - now
    if left > 0 and (again == 0 or left < again) then
      again = left
    end
  end
  return again
end
