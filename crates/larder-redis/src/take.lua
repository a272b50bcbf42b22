-- Takes a lease, or says who has it: 1 taken, 0 held, 2 there is nothing to wait for.
local key, holder, millis = KEYS[1], ARGV[1], ARGV[2]
local found = redis.call('GET', key)
if not found then
  redis.call('SET', key, holder, 'PX', millis)
  return 1
end
return found == '-' and 2 or 0
