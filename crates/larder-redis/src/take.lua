-- Takes a fill lock, or reports its state: 1 taken, 0 held by another, 2 the last fill was not storable, so do not
-- wait.
local key, holder, millis = KEYS[1], ARGV[1], ARGV[2]
local found = redis.call('GET', key)
if not found then
  redis.call('SET', key, holder, 'PX', millis)
  return 1
end
return found == '-' and 2 or 0
