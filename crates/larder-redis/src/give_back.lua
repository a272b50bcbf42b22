-- Releases a fill lock if the holder still has it. If `vain` is not 0, marks the key as not storable for `vain`
-- milliseconds instead.
local key, holder, vain = KEYS[1], ARGV[1], tonumber(ARGV[2])
if redis.call('GET', key) == holder then
  if vain > 0 then
    redis.call('SET', key, '-', 'PX', vain)
  else
    redis.call('DEL', key)
  end
end
return 1
