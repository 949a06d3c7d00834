-- The line of those who wait: for every script that may free a place, or look for one. Included as late as possible:
-- without waiters, making these functions would be a tenth of the cost of a script.
--
-- Every member of `deadlines` is a waiter, listed in `waiters`, or has been offered a place, listed in `holders`; a
-- lease is never in it. So what is overdue there can be thrown away without looking at it.

-- µs that a condemned holder has to speak up.
local GRACE = 100000
-- µs that an offer is kept for a waiter of which nothing is known.
local CLAIM_TTL = 2000000
local MANY = 1000

-- Let a key exist for at least as long as this; returns for how many ms it does.
local function outlive(key, microseconds)
  local least, left = math.ceil(microseconds / 1000) + 500, redis.call('PTTL', key)
  if left < least then
    redis.call('PEXPIRE', key, digits(least))
    left = least
  end
  return left
end

-- Waiters that have stopped asking, and offers that nobody has taken: each is handled once in its life.
local function purge()
  local gone = 0
  while true do
    local overdue = redis.call('ZRANGEBYSCORE', deadlines, '-inf', digits(now), 'LIMIT', 0, MANY)
    if #overdue == 0 then
      return gone
    end
    redis.call('ZREM', deadlines, unpack(overdue))
    redis.call('ZREM', waiters, unpack(overdue))
    redis.call('ZREM', holders, unpack(overdue))
    redis.call('HDEL', records, unpack(overdue))
    redis.call('HDEL', wishes, unpack(overdue))
    gone = gone + #overdue
  end
end

-- Replace as many expired holders as are too many for one more under this limit, of whom fewer are believed. Returns 0,
-- or µs after which to ask again.
local function make_room(limit)
  -- Fewer than limit are believed, so the first ones by expiry, as many as are too many, have all expired.
  local surplus = redis.call('ZCARD', holders) - limit + 1
  if surplus <= 0 then
    return 0
  end
  local silent = {}
  for _, holder in ipairs(redis.call('ZRANGE', holders, 0, surplus - 1)) do
    if is_resting(holder) then
      redis.call('ZREM', holders, holder)
      redis.call('HDEL', records, holder)
    else
      silent[#silent + 1] = holder
    end
  end
  -- In two steps: after the server itself was stopped, renewals of live holders are waiting in its sockets beside
  -- this command, and whichever is read first must not decide.
  local wait = 0
  for _, holder in ipairs(silent) do
    local marked = tonumber(redis.call('HGET', records, mark_of(holder)) or nil)
    if not marked or marked > now then
      redis.call('HSET', records, mark_of(holder), digits(now))
      marked = now
    end
    wait = math.max(wait, marked + GRACE - now)
  end
  if wait > 0 then
    keep(now)
    return wait
  end
  for _, holder in ipairs(silent) do
    redis.call('ZREM', holders, holder)
    redis.call('HDEL', records, holder, mark_of(holder))
    bury(holder)
  end
  return 0
end

local function believed()
  return redis.call('ZCOUNT', holders, '(' .. digits(now), '+inf')
end

-- Offer what places there are to those who wait, first in, first out; `quiet` needs no hint. With `proven` it is known
-- that nobody holds the key under a lease that the store has lost. Returns how many offers were made, and µs after which
-- to ask again (0: not known).
local function settle(quiet, proven)
  local made = 0
  while true do
    local first = redis.call('ZRANGE', waiters, 0, 0)[1]
    if not first then
      return made, 0
    end
    local told = redis.call('HGET', wishes, first) or ''
    local hold, earliest, limit, listener, record = string.match(told, '^(%d+) (%d+) (%d+) (%S*) (.*)$')
    earliest, limit = tonumber(earliest or 0), tonumber(limit or 1)
    if earliest > now and not proven then
      return made, earliest - now
    end
    local listed = redis.call('ZCARD', holders)
    if listed >= limit then
      if believed() >= limit then
        return made, 0
      end
      local wait = make_room(limit)
      if wait > 0 then
        return made, wait
      end
    end
    hold = tonumber(hold or CLAIM_TTL)
    redis.call('ZREM', waiters, first)
    redis.call('HDEL', wishes, first)
    redis.call('ZADD', holders, digits(now + hold), first)
    redis.call('HSET', records, first, next_number() .. ' ' .. digits(limit) .. ' ' .. (record or '{}'))
    redis.call('ZADD', deadlines, digits(now + hold), first)
    local lasts = outlive(holders, hold)
    outlive(records, hold)
    -- Never without the deadline: that is what tells an offer from a lease.
    outlive(deadlines, 1000 * lasts)
    if (listener or '') ~= '' and first ~= quiet then
      -- pcall: a user who may not publish gets no hints; that must not make a release fail.
      local channel = string.match(meta, '^[^{]*') .. 'offers:' .. listener
      redis.pcall('PUBLISH', channel, #first .. ' ' .. first .. holders)
    end
    made = made + 1
  end
end
