-- Replaces a value if it is still the one that was read. Returns 1 if it was.
local key, read, value, millis = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if redis.call('GET', key) ~= read then
  return 0
end
redis.call('SET', key, value, 'PX', millis)
return 1
