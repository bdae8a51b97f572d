-- Number, store and publish a batch of one room, in one step.
--
-- KEYS  1 meta (hash)  2 log (stream)  3, 4 repeats, current and previous (hashes)
--       5 channel (not a key; named here so that a cluster checks its slot)
-- ARGV  1 run id of the server as this connection learned it   2 a fresh random epoch
--       then for each message: user and id (one string), fingerprint of its text, body
-- The settings stand before this text as locals (see Script.load), since they are the same for every batch:
--       keep events, keep_seconds and at most keep_bytes are what the log keeps; after life seconds
--       everything expires; after rotate_seconds or rotate_entries the repeats rotate; publish is
--       PUBLISH, or SPUBLISH for a shard's channel.
--
-- Returns {epoch, seq of the newest event, then for each message its seq: positive where it was stored
-- now, negative where an earlier try stored it, 0 where its id belongs to another text}.
-- Everything is validated before anything is written, and what is written is always published.

local meta, log, repeats, former, channel = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local run_id, fresh_epoch = ARGV[1], ARGV[2]
local first = 3

if (#ARGV - first + 1) % 3 ~= 0 or #ARGV < first then
  return redis.error_reply('ERR a batch is user and id, fingerprint and body of each message')
end
for i = first, #ARGV, 3 do
  if ARGV[i + 2]:sub(1, 1) ~= '{' or #ARGV[i + 2] < 3 then
    return redis.error_reply('ERR a body is a JSON object with at least one member')
  end
end

local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local found = redis.call('HMGET', meta, 'epoch', 'seq', 'run', 'ends', 'rotated', 'bytes', 'renewed', 'base')
local epoch, seq, ends = found[1], tonumber(found[2]) or 0, found[4] or ''
local rotated, bytes, renewed = tonumber(found[5]) or 0, tonumber(found[6]) or 0, tonumber(found[7]) or 0
local base = tonumber(found[8]) or seq  -- newest seq when the repeats rotated last
local former_epoch = epoch

if not epoch then
  -- Should only the log have survived, its numbers are not given out again, and what it has belongs
  -- to an epoch whose name is lost.
  local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if newest then
    seq = tonumber(newest[1]:match('^%d+'))
    ends = '-:' .. string.format('%.0f', seq)
  end
elseif found[3] ~= run_id then
  -- Another server than the one this room was written under: acknowledged events may be lost, so
  -- their numbers are not given out again under the old epoch. The last eight ends are kept.
  ends = epoch .. ':' .. string.format('%.0f', seq) .. ' ' .. ends
  local kept = {}
  for entry in ends:gmatch('%S+') do
    if #kept < 8 then kept[#kept + 1] = entry end
  end
  ends = table.concat(kept, ' ')
  epoch = fresh_epoch
end
epoch = epoch or fresh_epoch

if now_ms - rotated >= rotate_seconds * 1000 or seq - base >= rotate_entries then
  if redis.call('EXISTS', repeats) == 1 then
    redis.call('RENAME', repeats, former)
  else
    redis.call('DEL', former)
  end
  rotated, renewed, base = now_ms, 0, seq
end

local reply, bodies, added, first_seq = {epoch, 0}, {}, 0, seq + 1
for i = first, #ARGV, 3 do
  local who, fingerprint, body = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local place = string.format('%.0f', seq + 1)
  -- One call both asks and notes; what the former repeats know is taken back.
  local known = false
  if redis.call('HSETNX', repeats, who, place .. ':' .. fingerprint) == 0 then
    known = redis.call('HGET', repeats, who)
  else
    known = redis.call('HGET', former, who)
    if known then redis.call('HDEL', repeats, who) end
  end
  if known then
    local old, print = known:match('^(%d+):(.*)$')
    reply[#reply + 1] = print == fingerprint and -tonumber(old) or 0
  else
    seq = seq + 1
    redis.call('XADD', log, place .. '-0', 't', now_ms, 'b', body)
    bodies[#bodies + 1] = struct.pack('>I4', #body) .. body
    added = added + #body
    reply[#reply + 1] = seq
  end
end
reply[2] = seq

local count = #bodies
if count > 0 then
  redis.call(publish, channel,
    'E' .. epoch .. struct.pack('>I8', first_seq) .. struct.pack('>I4', count) .. table.concat(bodies))
  bytes = bytes + added
end

-- The log is looked at once for every 64 events, since XLEN and XTRIM cost as much as storing one.
if math.floor((first_seq - 1) / 64) ~= math.floor(seq / 64) or bytes > keep_bytes then
  local held = redis.call('XLEN', log)
  if held > keep + 100 then
    -- Trim what is both beyond the count and older than the age; and, above the bytes, by count alone.
    local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
    if now_ms - tonumber(oldest[2][2]) > keep_seconds * 1000 then
      redis.call('XTRIM', log, 'MAXLEN', '~', keep)
    end
  end
  local average = bytes / math.max(1, held)
  if bytes > keep_bytes then
    redis.call('XTRIM', log, 'MAXLEN', '~', math.max(1, math.floor(keep_bytes / average * 0.9)))
  end
  local left = redis.call('XLEN', log)
  if left < held then bytes = math.floor(average * left) end
end

if epoch ~= former_epoch or rotated == now_ms then
  redis.call('HSET', meta, 'epoch', epoch, 'run', run_id, 'ends', ends,
    'rotated', string.format('%.0f', rotated), 'base', string.format('%.0f', base))
end
-- Lives are renewed once a minute (or four times in a short life), not with every batch.
if now_ms - renewed > math.min(60, life / 4) * 1000 then
  -- The meta key outlives the log and the repeats, so that no seq is given out twice.
  redis.call('EXPIRE', log, life)
  redis.call('EXPIRE', repeats, math.min(life, rotate_seconds * 2 + 60))
  redis.call('EXPIRE', former, math.min(life, rotate_seconds * 2 + 60))
  redis.call('HSET', meta, 'seq', string.format('%.0f', seq), 'bytes', string.format('%.0f', bytes),
    'renewed', string.format('%.0f', now_ms))
  redis.call('EXPIRE', meta, life * 2)
elseif count > 0 then
  redis.call('HSET', meta, 'seq', string.format('%.0f', seq), 'bytes', string.format('%.0f', bytes))
end
return reply
