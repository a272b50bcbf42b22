-- The journal of a write-behind queue. Each change is an event of the stream, with the next number as its id, so every process
-- that reads the stream has the same queue. An operation is an event until the sink has it; then its entry is deleted.
local meta, stream, dead, applied, controls = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local expected, action = ARGV[1], ARGV[2]
local id = redis.call('HGET', meta, 'id')

local server = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''

if not id and action == 'open' then
  if redis.call('EXISTS', stream, dead, applied) > 0 then
    return redis.error_reply('LOST the journal has operations, but no identity')
  end
  id = ARGV[3]
  redis.call('HSET', meta, 'id', id, 'last', 0, 'partitions', ARGV[4], 'server', server)
end
if not id or (id ~= expected and action ~= 'open') then
  return redis.error_reply('GONE the journal was lost or replaced')
end
local last = tonumber(redis.call('HGET', meta, 'last'))

local function event(...)
  last = last + 1
  redis.call('XADD', stream, last .. '-0', ...)
  redis.call('HSET', meta, 'last', last)
  return last
end

-- An event that is no operation. A process that starts does not need it, and one that follows reads it soon.
local function control(...)
  redis.call('LPUSH', controls, event(...))
  while redis.call('LLEN', controls) > 1000 do
    redis.call('XDEL', stream, redis.call('RPOP', controls) .. '-0')
  end
  return last
end

-- Continues above a number, by an event that changes nothing (an empty list in MessagePack).
local function continue_above(number)
  last = number - 1
  control('discarded', '\144')
end

-- Another server, or one that was restarted, may have lost its last events. Their numbers must not be given again, because a
-- process or the sink may have seen them.
if redis.call('HGET', meta, 'server') ~= server then
  redis.call('HSET', meta, 'server', server)
  continue_above(last + 1048576)
end

if action == 'open' then
  local found = redis.call('HMGET', meta, 'partitions', 'registered')
  return { id, last, tonumber(found[1]), found[2] and 1 or 0 }
end

local function remove(number)
  redis.call('XDEL', stream, number .. '-0')
end

if action == 'append' then
  return event('add', ARGV[3], 'by', ARGV[4])
elseif action == 'applied' then
  redis.call('HSET', applied, ARGV[3], ARGV[4])
  for at = 5, #ARGV do
    remove(ARGV[at])
  end
  return control('applied', ARGV[3] .. ' ' .. ARGV[4])
elseif action == 'bury' then
  for at = 4, #ARGV, 2 do
    redis.call('HSET', dead, ARGV[at], ARGV[at + 1])
    remove(ARGV[at])
  end
  return control('buried', ARGV[3])
elseif action == 'revive' then
  if tonumber(ARGV[4]) ~= last then
    return redis.error_reply('OVERTAKEN another process has changed the queue')
  end
  local numbers = {}
  for at = 5, #ARGV, 2 do
    redis.call('HDEL', dead, ARGV[at])
    numbers[#numbers + 1] = event('add', ARGV[at + 1], 'by', '')
  end
  control('revived', ARGV[3])
  numbers[#numbers + 1] = last
  return numbers
elseif action == 'discard' then
  for at = 4, #ARGV do
    redis.call('HDEL', dead, ARGV[at])
    remove(ARGV[at])
  end
  return control('discarded', ARGV[3])
elseif action == 'register' then
  redis.call('HSET', meta, 'registered', 1)
  if tonumber(ARGV[3]) > last then
    continue_above(tonumber(ARGV[3]))
  end
  return last
end
return redis.error_reply('unknown action ' .. action)
