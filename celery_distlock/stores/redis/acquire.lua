-- ARGV: owner, linger (ms), ttl (us), limit, record, '1' if a refusal draws a number, '0' to be granted nothing but what
-- is offered. KEYS[8], if given: the completion record.
-- Returns the fence: granted. 1: completed. 0: nothing is offered. {wait (us), now, the number of a place at the end of
-- the line or '', owner, expiry, record, '1' if it is an offer, ...}: contended; with a wait above 0: ask again after it,
-- a place may be had then.

-- include: grant
if KEYS[8] and redis.call('EXISTS', KEYS[8]) == 1 then
  return 1
end

if ARGV[6] ~= '0' and redis.call('EXISTS', holders, waiters, tombs) == 0 then
  return grant()
end

-- include: held
-- Whose turn it is, as a rule: nothing else in the line matters then, and polls see to it.
if tonumber(redis.call('ZSCORE', deadlines, owner) or 0) > now then
  local fence = held()
  if fence then
    return fence
  end
end
-- Who does not wait for the answer may be long done when he is heard.
if ARGV[6] == '0' then
  return 0
end

-- include: queue
local NAMED = 10

local function contended(wait)
  local drawn = ''
  if ARGV[6] == '1' and wait == 0 then
    -- pcall: a server out of memory gives no numbers; that must not hide the answer.
    local given, number = pcall(next_number)
    drawn = given and number or ''
  end
  local answer = {wait, digits(now), drawn}
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
    answer[#answer + 1] = redis.call('ZSCORE', deadlines, owners[i]) and '1' or ''
  end
  return answer
end

purge()
local fence = held()
if fence then
  return fence
end

if redis.call('ZSCORE', tombs, owner) or redis.call('ZSCORE', tombs, barred(owner)) then
  return contended(0)
end

if redis.call('EXISTS', waiters) == 1 then
  -- Places go to them first; it may be one of them who asks.
  settle(owner)
  fence = held()
  if fence then
    return fence
  end
  if redis.call('EXISTS', waiters) == 1 then
    return contended(0)
  end
end

if believed() >= limit then
  return contended(0)
end
local wait = make_room(limit)
if wait > 0 then
  return contended(wait)
end
return grant()
