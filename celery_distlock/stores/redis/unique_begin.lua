-- ARGV: owner of the lease, linger (ms), ttl (us), limit, record, id, '1' if it replaces, '1' if it wants the lease.
-- Returns {1, fence or '0'}: begun. {3, id or ''}: superseded.

-- include: unique
-- include: grant
local id = ARGV[6]

if is_superseded(id) then
  return {3, live('queued') or ''}
end
if not leave('queued', id) and ARGV[7] == '1' then
  remember_begun(id)
end
-- It was provisional: nothing could have become of the one that was accepted.
local full = redis.call('HMGET', token, 'window', 'window:full')
if full[1] == id and full[2] and tonumber(full[2]) > now then
  enter('window', id, tonumber(full[2]))
end
if ARGV[8] ~= '1' then
  return {1, '0'}
end

-- include: queue
-- include: held
local fence = held()
if fence then
  return {1, fence}
end
if believed() > 0 or redis.call('ZSCORE', tombs, owner) or redis.call('ZSCORE', tombs, barred(owner)) then
  return {1, '0'}
end
-- Without the grace that a lock gives: whoever loses this lease loses nothing but the uniqueness.
for _, holder in ipairs(redis.call('ZRANGE', holders, 0, -1)) do
  redis.call('ZREM', holders, holder)
  redis.call('HDEL', records, holder, mark_of(holder))
  bury(holder)
end
return {1, grant()}
