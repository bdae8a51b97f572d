-- One worker's heartbeat; tells which workers live, by the store's clock alone.
--
-- KEYS  1 workers (sorted set: worker -> time of its last beat)
-- ARGV  1 worker   2 seconds after which a silent worker counts as gone
--
-- Returns the workers that live.

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 86400)
redis.call('EXPIRE', KEYS[1], 86400)
return redis.call('ZRANGEBYSCORE', KEYS[1], now - tonumber(ARGV[2]), '+inf')
