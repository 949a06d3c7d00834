-- Put in front of every script on a lock. ARGV[1] is the owner (or none), ARGV[2] the linger in ms; see layout.py for
-- the keys.
--
-- Numbers are exact up to 2^53, that is until the year 2255 in microseconds; but Lua's own conversion to text is not,
-- so whatever is stored or returned goes through digits().

local holders, records, waiters = KEYS[1], KEYS[2], KEYS[3]
local deadlines, tombs, wishes, meta = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local owner, linger = ARGV[1], tonumber(ARGV[2])

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

local function digits(number)
  return string.format('%.0f', number)
end

-- The field that says since when an expired holder has been asked to speak up.
local function mark_of(holder)
  return holder .. ':condemned'
end

-- In the tombstones: an owner as it is has lost its place to another, an owner with this suffix must not come back.
local function barred(who)
  return who .. ':barred'
end

-- Who stays listed in a holder's stead until its shortest time is over.
local function resting(who)
  return who .. ':resting'
end

local function is_resting(who)
  return string.sub(who, -8) == ':resting'
end

-- Make the holders and their records vanish together, an hour or so after the last of them has expired.
local function keep(expiry)
  local top = redis.call('ZREVRANGE', holders, 0, 0, 'WITHSCORES')
  local last = math.max(expiry, tonumber(top[2] or 0))
  local at = digits(math.ceil(last / 1000) + linger)
  redis.call('PEXPIREAT', holders, at)
  redis.call('PEXPIREAT', records, at)
end

local function bury(tombstone)
  redis.call('ZREMRANGEBYSCORE', tombs, '-inf', digits(now - linger * 1000))
  redis.call('ZADD', tombs, digits(now), tombstone)
  redis.call('PEXPIRE', tombs, digits(linger))
end

-- What is known of the owner ('' if nothing) if it is listed under this fence ('0': under any), else false.
local function is_listed(fence)
  if not redis.call('ZSCORE', holders, owner) then
    return false
  end
  local known = redis.call('HGET', records, owner)
  return (fence == '0' or not known or string.sub(known, 1, #fence + 1) == fence .. ' ') and (known or '')
end

-- Whether the fence was given out before the store lost its data, or by a primary whose last writes did not reach the
-- replica that has replaced it: then the counter is behind.
local function of_an_earlier_life(fence)
  local life = redis.call('HMGET', meta, 'epoch', 'fence')
  local number = tonumber(fence)
  return not life[1] or number < tonumber(life[1]) or number > tonumber(life[2] or 0)
end

-- The next number of the shard, for a fence or a ticket: one counter, above all that were given out before the data
-- were lost.
local function next_number()
  local life = redis.call('HMGET', meta, 'fence', 'epoch')
  local number = digits(math.max(tonumber(life[1] or 0) + 1, now))
  if life[2] then
    redis.call('HSET', meta, 'fence', number)
  else
    redis.call('HSET', meta, 'fence', number, 'epoch', number)
  end
  return number
end
