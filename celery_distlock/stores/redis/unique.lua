-- For scripts on a token: KEYS[8] and KEYS[9]; the lock is the one that a running task holds while it is unique.

local token, outdated = KEYS[8], KEYS[9]

-- Let a key exist until this time at least (µs).
local function exist_until(key, deadline)
  local least = math.ceil((deadline - now) / 1000)
  if redis.call('PTTL', key) < least then
    redis.call('PEXPIRE', key, digits(least))
  end
end

-- µs for which a publisher may not have come to reserve what it has published.
local LATE = 60000000

-- The id in one of the token's places, 'queued' or 'window', if its time is not over, and until when it is there.
local function live(place)
  local found = redis.call('HMGET', token, place, place .. ':until')
  if found[1] and tonumber(found[2]) > now then
    return found[1], tonumber(found[2])
  end
  return nil
end

local function enter(place, id, deadline)
  if redis.call('HGET', token, place) ~= id then
    redis.call('HSET', token, place .. ':since', digits(now))
  end
  redis.call('HSET', token, place, id, place .. ':until', digits(deadline))
  exist_until(token, deadline)
end

local function leave(place, id)
  if redis.call('HGET', token, place) == id then
    redis.call('HDEL', token, place, place .. ':since', place .. ':until', place .. ':full')
    return true
  end
  return false
end

local function remember(member, deadline)
  redis.call('ZREMRANGEBYSCORE', outdated, '-inf', digits(now))
  redis.call('ZADD', outdated, digits(deadline), member)
  exist_until(outdated, deadline)
end

local function is_superseded(id)
  return tonumber(redis.call('ZSCORE', outdated, id) or 0) > now
end

-- In the outdated: an id as it is must not run, one with this suffix has started before its place was entered.
local function begun(id)
  return id .. ':begun'
end

local function remember_begun(id)
  remember(begun(id), now + LATE)
end

-- When it has (µs), if that is remembered.
local function began(id)
  local until_when = tonumber(redis.call('ZSCORE', outdated, begun(id)) or 0)
  return until_when > now and until_when - LATE or nil
end
