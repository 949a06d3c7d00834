-- ARGV: id, linger (ms), ttl (us), window (us), '1' if queued, '1' if running ones count, '1' if it replaces.
-- Returns {1, id of the one replaced or ''}: reserved. {2, id}: there is another one. {3, id or ''}: superseded.

-- include: unique
local ttl, window = tonumber(ARGV[3]), tonumber(ARGV[4])
local queued, running, replaces = ARGV[5] == '1', ARGV[6] == '1', ARGV[7] == '1'

-- The id of the task that holds the running key, if that is believed and known.
local function runner()
  local last = redis.call('ZREVRANGE', holders, 0, 0, 'WITHSCORES')
  if not last[1] or tonumber(last[2]) <= now then
    return nil
  end
  local known = redis.call('HGET', records, last[1]) or ''
  local read, record = pcall(cjson.decode, string.match(known, '^%d+ %d+ (.*)$') or '')
  return read and type(record) == 'table' and type(record.id) == 'string' and record.id or nil
end

local first, deadline = live('queued')
if is_superseded(owner) then
  return {3, first or ''}
end
-- One that replaces is reserved after it was published: it may have started, and ended, by now.
local started = replaces and began(owner)
if running and not started then
  local other = runner()
  if other and other ~= owner then
    if replaces then
      remember(owner, now + ttl)
      leave('queued', owner)
    end
    return {2, other}
  end
end
local old = first and first ~= owner and first or nil
if queued and old and not replaces then
  return {2, old}
end
if window > 0 then
  local other = live('window')
  if other and other ~= owner then
    return {2, other}
  end
end

if started and old and tonumber(redis.call('HGET', token, 'queued:since') or 0) > started then
  -- Published after that run began, which may have passed over what this one is about.
  old = nil
end
if replaces and old then
  remember(old, math.max(deadline, now + ttl))
  leave('queued', old)
end
if queued and not started then
  enter('queued', owner, now + ttl)
end
if window > 0 then
  enter('window', owner, now + math.min(ttl, window))
  redis.call('HSET', token, 'window:full', digits(now + window))
end
return {1, replaces and old or ''}
