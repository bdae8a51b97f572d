-- Read a page of a room's log together with where the room is, in one step. An unwritten room gets its
-- epoch here; a room written under another server gets a new one.
--
-- KEYS  1 meta (hash of state and ends)  2 log (stream)
-- ARGV  1 run id of the server   2 a fresh random epoch   3 seconds before everything expires
--       4 first seq wanted, 0 for the newest events   5 events at most, 0 for none
--
-- Returns {epoch, head seq, ends, first seq of the events, body, body, ...}.

local meta, log = KEYS[1], KEYS[2]
local run_id, life = ARGV[1], tonumber(ARGV[3])
local start, limit = tonumber(ARGV[4]), tonumber(ARGV[5])
local found = redis.call('HMGET', meta, 'state', 'ends')
local ends = found[2] or ''
local seq, bytes, rotated, base, renewed, epoch, run = 0, 0, 0, 0, 0
if found[1] then
  seq, bytes, rotated, base, renewed, epoch, run = struct.unpack(packed, found[1])
end

if not epoch or run ~= run_id then
  if epoch then
    ends = epoch .. ':' .. string.format('%.0f', seq) .. ' ' .. ends
    local kept = {}
    for entry in ends:gmatch('%S+') do
      if #kept < 8 then kept[#kept + 1] = entry end
    end
    ends = table.concat(kept, ' ')
  else
    local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
    if newest then seq = tonumber(newest[1]:match('^%d+')) end
  end
  epoch = ARGV[2]
  redis.call('HSET', meta, 'ends', ends, 'state',
    struct.pack(packed, seq, bytes, rotated, base, renewed, #epoch, epoch, #run_id, run_id))
end
redis.call('EXPIRE', meta, life * 2)
redis.call('EXPIRE', log, life)

local reply = {epoch, seq, ends, start}
if limit > 0 and seq > 0 then
  if start <= 0 then start = math.max(1, seq - limit + 1) end
  local events = redis.call('XRANGE', log, string.format('%.0f', start), '+', 'COUNT', limit)
  if #events > 0 then reply[4] = tonumber(events[1][1]:match('^%d+')) end
  for _, event in ipairs(events) do
    reply[#reply + 1] = event[2][4]
  end
end
return reply
