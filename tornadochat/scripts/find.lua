-- Look up whether messages were stored by an earlier try; writes nothing.
--
-- KEYS  1 meta (hash of state and ends)  2, 3 repeats, current and previous (hashes)
-- ARGV  for each message: user and id (one string), fingerprint of its text
--
-- Returns {epoch or '', then for each message: its seq, 0 where the id belongs to another text, -1 where
-- it is unknown}.

local state = redis.call('HGET', KEYS[1], 'state')
local reply = {state and select(6, struct.unpack(packed, state)) or ''}
for i = 1, #ARGV, 2 do
  local known = redis.call('HGET', KEYS[2], ARGV[i]) or redis.call('HGET', KEYS[3], ARGV[i])
  if known then
    local place, print = known:match('^(%d+):(.*)$')
    reply[#reply + 1] = print == ARGV[i + 1] and tonumber(place) or 0
  else
    reply[#reply + 1] = -1
  end
end
return reply
