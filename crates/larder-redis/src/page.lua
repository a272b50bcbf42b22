-- Returns a page of the compacted log: for each target the newest number of each mode, in order of number. All members
-- with the same number are on the same page.
local meta, compact = KEYS[1], KEYS[3]
local after, most = ARGV[1], ARGV[2]
local found = redis.call('HMGET', meta, 'epoch', 'last', 'horizon')
if not found[1] or not redis.call('ZSCORE', compact, '!' .. found[1]) then
  return redis.error_reply('GONE the log has lost records')
end
local members = redis.call('ZRANGEBYSCORE', compact, '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', 0, most)
local more = 0
if #members > 0 then
  local last = members[#members]
  local rest = redis.call('ZRANGEBYSCORE', compact, last, last, 'WITHSCORES')
  while #members > 0 and members[#members] == last do
    table.remove(members)
    table.remove(members)
  end
  for _, part in ipairs(rest) do
    table.insert(members, part)
  end
  more = redis.call('ZCOUNT', compact, '(' .. last, '+inf')
end
return { found[1], found[2], found[3], more, members }
