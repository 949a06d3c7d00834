-- ARGV: '', linger (ms), owners. Leases are not touched. Returns how many were in the line, or had been offered a place.

-- include: queue
local gone, proven = 0, false
for i = 3, #ARGV do
  local who = ARGV[i]
  if redis.call('ZREM', deadlines, who) == 1 then
    gone = gone + 1
    redis.call('ZREM', waiters, who)
    if redis.call('ZREM', holders, who) == 1 then
      proven = proven or string.match(redis.call('HGET', records, who) or '', '^%d+ 1 ')
    end
    redis.call('HDEL', records, who)
    redis.call('HDEL', wishes, who)
  end
end
if redis.call('EXISTS', waiters, deadlines) > 0 then
  purge()
  settle(nil, proven)
end
return gone
