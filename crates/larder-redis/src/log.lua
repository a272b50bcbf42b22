-- Appends a record to the log, schedules a record to be appended later, or only returns the end of the log. It is one
-- script, so that no other command runs between its steps.
--
-- The log consists of five keys in one hash slot. Four of them hold the epoch. If one of these keys is missing, has
-- another type or has another epoch, the log has lost records, and a new epoch begins. A new epoch also begins if the
-- log is on a different server or the server was restarted, because the script cannot know which records a fail-over or
-- a restart has lost. A missing number is never read as zero. The fifth key holds scheduled records. It belongs to no
-- epoch and outlives them; its sentinel `!` is missing only if the key was lost, and then a new epoch begins, too.
local meta, stream, compact, clock, due = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local fresh, lost, longest, keep = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local act, after, id, record = ARGV[5], ARGV[6], ARGV[7], ARGV[8]

local server = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
local history = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or ''

local function is(key, kind)
  return redis.call('TYPE', key).ok == kind
end

local function epoch_of_a_whole_log()
  if not (is(meta, 'hash') and is(stream, 'stream') and is(compact, 'zset') and is(clock, 'zset')
      and is(due, 'zset') and redis.call('ZSCORE', due, '!')) then
    return nil
  end
  local found = redis.call('HMGET', meta, 'epoch', 'server', 'history', 'last')
  local epoch, last = found[1], found[4]
  if not epoch or epoch == lost or found[2] ~= server or found[3] ~= history then
    return nil
  end
  if not redis.call('ZSCORE', compact, '!' .. epoch) or not redis.call('ZSCORE', clock, '!' .. epoch) then
    return nil
  end
  local info = redis.call('XINFO', 'STREAM', stream)
  for at = 1, #info, 2 do
    if info[at] == 'last-generated-id' then
      local expected = last == '0' and '0-1' or last .. '-0'
      return info[at + 1] == expected and epoch or nil
    end
  end
  return nil
end

local epoch = epoch_of_a_whole_log()
if not epoch then
  epoch = fresh
  redis.call('DEL', meta, stream, compact, clock)
  redis.call('HSET', meta, 'epoch', epoch, 'server', server, 'history', history, 'last', 0, 'horizon', 0)
  redis.call('ZADD', compact, -1, '!' .. epoch)
  redis.call('ZADD', clock, -1, '!' .. epoch)
  if not is(due, 'zset') then
    redis.call('DEL', due)
  end
  redis.call('ZADD', due, -1, '!')
  redis.call('XADD', stream, '0-1', 'epoch', epoch)
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
-- Stores the longest lifetime of an entry in any process. Each call writes it, so that a replica, or a primary without
-- its quorum, refuses to answer.
longest = math.max(longest, tonumber(redis.call('HGET', meta, 'longest') or 0))
redis.call('HSET', meta, 'longest', longest)

local last = tonumber(redis.call('HGET', meta, 'last'))

local function append(record, members)
  local next = last + 1
  -- Records the minute in which this number was assigned, once per minute.
  local minute = math.floor(now / 60000)
  if redis.call('ZCOUNT', clock, minute, minute) == 0 then
    redis.call('ZADD', clock, minute, next)
  end
  for _, member in ipairs(members) do
    redis.call('ZADD', compact, next, member)
  end
  redis.call('XADD', stream, 'MAXLEN', '~', keep, next .. '-0', 'epoch', epoch, 'record', record)
  -- Written last, so that every number up to `last` is in the log.
  redis.call('HSET', meta, 'last', next)
  last = next
end

-- Append the scheduled records that are due, from any process.
for _, packed in ipairs(redis.call('ZRANGEBYSCORE', due, 0, now, 'LIMIT', 0, 64)) do
  local readable, noted = pcall(cmsgpack.unpack, packed)
  if readable and type(noted) == 'table' and type(noted[2]) == 'string' and type(noted[3]) == 'table' then
    append(noted[2], noted[3])
  else
    -- A record that cannot be decoded may name any target, so everything is invalidated.
    append('?', { 'h?' })
  end
  redis.call('ZREM', due, packed)
end

local members = {}
for at = 9, #ARGV do
  members[#members + 1] = ARGV[at]
end
if act == 'append' then
  append(record, members)
elseif act == 'schedule' then
  redis.call('ZADD', due, now + tonumber(after), cmsgpack.pack({ id, record, members }))
end

-- Drop records that are older than any entry can be, a few with each call.
local old = redis.call('ZREVRANGEBYSCORE', clock, math.floor((now - longest) / 60000) - 1, 0, 'LIMIT', 0, 1)[1]
if old then
  local gone = redis.call('ZRANGEBYSCORE', compact, 0, '(' .. old, 'WITHSCORES', 'LIMIT', 0, 64)
  for at = 1, #gone, 2 do
    redis.call('ZREM', compact, gone[at])
    redis.call('HSET', meta, 'horizon', gone[at + 1])
  end
  if #gone < 128 then
    redis.call('ZREMRANGEBYSCORE', clock, 0, '(' .. redis.call('ZSCORE', clock, old))
  end
end
return { epoch, last, now }
