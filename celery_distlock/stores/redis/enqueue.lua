-- ARGV: owner, linger (ms), ttl (us), limit, record, claim ttl (us), listener, ticket ('': none), '1' to be offered a
-- place instead of granted one. KEYS[8], if given: the completion record.
-- Returns the fence: granted. 1: completed. 0: can never be granted. {number, code, look again after (us)}: in the
-- line; the code is as in poll.lua.

local hold, listener, ticket, only_offer = tonumber(ARGV[6]), ARGV[7], ARGV[8], ARGV[9] == '1'

-- include: grant
if KEYS[8] and redis.call('EXISTS', KEYS[8]) == 1 then
  return 1
end
if ticket == '' and not only_offer and redis.call('EXISTS', holders, waiters, tombs) == 0 then
  return grant()
end

-- include: queue
-- include: held
-- include: look
purge()
if not only_offer then
  local fence = held()
  if fence then
    return fence
  end
end
if redis.call('ZSCORE', tombs, owner) or redis.call('ZSCORE', tombs, barred(owner)) then
  return 0
end

local again = 0
if not redis.call('ZSCORE', holders, owner) then
  local number = redis.call('ZSCORE', waiters, owner)
  if not number then
    local earliest = 0
    if ticket == '' then
      number = next_number()
    else
      number = ticket
      local life = redis.call('HGET', meta, 'epoch')
      if not life then
        life = next_number()
      end
      -- The place was taken before the store lost its data, so the key was held by somebody, who may hold it still:
      -- it has its ttl to say so.
      if tonumber(number) < tonumber(life) then
        earliest = tonumber(life) + ttl
      end
    end
    redis.call('ZADD', waiters, number, owner)
    redis.call('HSET', wishes, owner, table.concat({ARGV[6], digits(earliest), ARGV[4], listener, record}, ' '))
  end
  redis.call('ZADD', deadlines, digits(now + hold), owner)
  outlive(waiters, hold)
  outlive(deadlines, hold)
  outlive(wishes, hold)
  local _
  _, again = settle(owner)
end
if not only_offer then
  local fence = held()
  if fence then
    return fence
  end
end
local number = redis.call('ZSCORE', waiters, owner)
return {number and digits(tonumber(number)) or ticket, code_of(owner), look_again(again)}
