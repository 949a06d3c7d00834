-- ARGV: owner, linger (ms), ttl (us), limit, record, whose lease it was, its fence ('0': any), ttl of the completion
-- record (ms; '0': it is looked for). KEYS[8], if given: the completion record.
-- Returns the fence of the owner's lease, a new one; 0: there was nothing to pass on; 1: completed.

-- include: grant
local from, fence = ARGV[6], ARGV[7]

if KEYS[8] and ARGV[8] ~= '0' then
  redis.call('SET', KEYS[8], '1', 'PX', ARGV[8])
elseif KEYS[8] and redis.call('EXISTS', KEYS[8]) == 1 then
  return 1
end
-- Whoever asked has given up.
if redis.call('ZSCORE', tombs, barred(owner)) then
  return 0
end

local function is_lease_of(who)
  return redis.call('ZSCORE', holders, who) and not redis.call('ZSCORE', deadlines, who)
end

local known = is_lease_of(from) and (redis.call('HGET', records, from) or '')
if known and (fence == '0' or string.sub(known, 1, #fence + 1) == fence .. ' ') then
  redis.call('ZREM', holders, from)
  redis.call('HDEL', records, from, mark_of(from))
  return grant()
end
-- Asked a second time, since the first answer was lost.
if is_lease_of(owner) then
  redis.call('ZADD', holders, digits(now + ttl), owner)
  keep(now + ttl)
  return string.match(redis.call('HGET', records, owner) or '', '^%d+')
end
return 0
