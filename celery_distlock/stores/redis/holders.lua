-- Returns {now, owner, expiry, record, '1' if it is an offer, ...}.

local answer = {digits(now)}
local listed = redis.call('ZRANGE', holders, 0, -1, 'WITHSCORES')
for i = 1, #listed, 2 do
  answer[#answer + 1] = listed[i]
  answer[#answer + 1] = digits(tonumber(listed[i + 1]))
  answer[#answer + 1] = redis.call('HGET', records, listed[i]) or ''
  answer[#answer + 1] = redis.call('ZSCORE', deadlines, listed[i]) and '1' or ''
end
return answer
