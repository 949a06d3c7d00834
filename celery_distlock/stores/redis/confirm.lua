-- ARGV: owner, linger (ms), ttl (us), limit, record. KEYS[8], if given: the completion record.
-- Returns the fence: granted. 1: completed. 0: there is no offer.

-- include: queue
-- include: grant
-- include: held
if KEYS[8] and redis.call('EXISTS', KEYS[8]) == 1 then
  if redis.call('ZREM', deadlines, owner) == 1 then
    redis.call('ZREM', waiters, owner)
    redis.call('ZREM', holders, owner)
    redis.call('HDEL', records, owner)
    redis.call('HDEL', wishes, owner)
  end
  purge()
  settle()
  return 1
end
if purge() > 0 then
  settle(owner)
end
return held() or 0
