-- ARGV: '', linger (ms), claim ttl (us), owners.
-- Returns {look again after (us), a code for each owner}: 0 and more: so many wait before it. -1: not in the line.
-- Below: has been offered a place, for (-2 - code) µs.

-- include: queue
-- include: look
local hold = tonumber(ARGV[3])

-- Before anybody is taken for gone: when the server itself was stopped, all are overdue.
local deadline, alive, ranks = digits(now + hold), {}, {}
for i = 4, #ARGV do
  ranks[i] = redis.call('ZRANK', waiters, ARGV[i])
  if ranks[i] then
    alive[#alive + 1] = deadline
    alive[#alive + 1] = ARGV[i]
  end
end
if #alive > 0 then
  -- Expiry first: a server out of memory refuses ZADD, unless the script has already written something.
  outlive(waiters, hold)
  outlive(wishes, hold)
  outlive(deadlines, hold)
  redis.call('ZADD', deadlines, unpack(alive))
end
local gone = purge()
local made, again = settle()
local moved = gone + made > 0
local answer = {look_again(again)}
for i = 4, #ARGV do
  answer[#answer + 1] = not moved and ranks[i] or code_of(ARGV[i])
end
return answer
