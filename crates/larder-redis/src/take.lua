-- Takes a fill lock if it is free. Returns 1 if it was taken, 0 if another holder has it, and 2 if the last fill was
-- not storable, so that the caller does not wait.
local key, holder, millis = KEYS[1], ARGV[1], ARGV[2]
local found = redis.call('GET', key)
if not found then
  redis.call('SET', key, holder, 'PX', millis)
  return 1
end
return found == '-' and 2 or 0
