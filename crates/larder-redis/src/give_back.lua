-- Gives a lease back, if it still is the holder's; or leaves word that there is nothing to wait for.
local key, holder, vain = KEYS[1], ARGV[1], tonumber(ARGV[2])
if redis.call('GET', key) == holder then
  if vain > 0 then
    redis.call('SET', key, '-', 'PX', vain)
  else
    redis.call('DEL', key)
  end
end
return 1
