-- Number, store and publish a batch of one room, in one step.
--
-- KEYS  1 meta (hash of state and ends)  2 log (stream)  3, 4 repeats, current and previous (hashes)
--       5 channel (not a key; named here so that a cluster checks its slot)
-- ARGV  1 run id of the server as this connection learned it   2 a fresh random epoch
--       then for each message: user and id (one string), fingerprint of its text, body
-- The settings stand before this text as locals (see Script.load), since they are the same for every batch:
--       packed is how the state is written; keep events, keep_seconds and at most keep_bytes are what the
--       log keeps; after life seconds everything expires; after rotate_seconds or rotate_entries the repeats rotate; publish is
--       PUBLISH, or SPUBLISH for a shard's channel.
--
-- Returns epoch and first seq as one string where all messages were stored now, one behind the other, which is
-- the usual case and costs the store less than a list. Else {epoch, then for each message its seq: positive
-- where it was stored now, negative where an earlier try stored it, 0 where its id belongs to another text}.
-- Each call costs more than all of the arithmetic, so a plain message makes seven: what is told of the room is
-- one field, read once and written once.
-- Everything is validated before anything is written, and what is written is always published.

local meta, log, repeats, former, channel = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local run_id, fresh_epoch = ARGV[1], ARGV[2]
local first, last = 3, #ARGV
local call, text_of = redis.call, string.format

if (last - first + 1) % 3 ~= 0 or last < first then
  return redis.error_reply('ERR a batch is user and id, fingerprint and body of each message')
end
for i = first, last, 3 do
  if ARGV[i + 2]:byte() ~= 123 or #ARGV[i + 2] < 3 then  -- {
    return redis.error_reply('ERR a body is a JSON object with at least one member')
  end
end

local now = call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local state = call('HGET', meta, 'state')
-- base is the newest seq when the repeats rotated last, renewed when the lives were renewed last.
local seq, bytes, rotated, base, renewed, epoch, run = 0, 0, 0, 0, 0
if state then
  seq, bytes, rotated, base, renewed, epoch, run = struct.unpack(packed, state)
end
local ends  -- where they change

if not epoch then
  -- Should only the log have survived, its numbers are not given out again, and what it has belongs
  -- to an epoch whose name is lost.
  local newest = call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if newest then
    seq = tonumber(newest[1]:match('^%d+'))
    ends = '-:' .. text_of('%.0f', seq)
  end
  epoch = fresh_epoch
elseif run ~= run_id then
  -- Another server than the one this room was written under: acknowledged events may be lost, so
  -- their numbers are not given out again under the old epoch. The last eight ends are kept.
  ends = epoch .. ':' .. text_of('%.0f', seq) .. ' ' .. (call('HGET', meta, 'ends') or '')
  local kept = {}
  for entry in ends:gmatch('%S+') do
    if #kept < 8 then kept[#kept + 1] = entry end
  end
  ends = table.concat(kept, ' ')
  epoch = fresh_epoch
end

if now_ms - rotated >= rotate_seconds * 1000 or seq - base >= rotate_entries then
  if call('EXISTS', repeats) == 1 then
    call('RENAME', repeats, former)
  else
    call('DEL', former)
  end
  rotated, renewed, base = now_ms, 0, seq
end

local reply, bodies, count, added, first_seq = {epoch}, {}, 0, 0, seq + 1
for i = first, last, 3 do
  local who, fingerprint, body = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local place = text_of('%.0f', seq + 1)
  -- One call both asks and notes; what the former repeats know is taken back.
  local known = false
  if call('HSETNX', repeats, who, place .. ':' .. fingerprint) == 0 then
    known = call('HGET', repeats, who)
  else
    known = call('HGET', former, who)
    if known then call('HDEL', repeats, who) end
  end
  if known then
    local old, print = known:match('^(%d+):(.*)$')
    reply[#reply + 1] = print == fingerprint and -tonumber(old) or 0
  else
    seq = seq + 1
    count = count + 1
    call('XADD', log, place .. '-0', 't', now_ms, 'b', body)
    bodies[count] = struct.pack('>I4', #body) .. body
    added = added + #body
    reply[#reply + 1] = seq
  end
end

if count > 0 then
  call(publish, channel,
    'E' .. epoch .. struct.pack('>I8I4', first_seq, count) .. (count == 1 and bodies[1] or table.concat(bodies)))
  bytes = bytes + added
end

-- The log is looked at once for every 64 events, since XLEN and XTRIM cost as much as storing one.
if math.floor((first_seq - 1) / 64) ~= math.floor(seq / 64) or bytes > keep_bytes then
  local held = call('XLEN', log)
  if held > keep + 100 then
    -- Trim what is both beyond the count and older than the age; and, above the bytes, by count alone.
    local oldest = call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
    if now_ms - tonumber(oldest[2][2]) > keep_seconds * 1000 then
      call('XTRIM', log, 'MAXLEN', '~', keep)
    end
  end
  local average = bytes / math.max(1, held)
  if bytes > keep_bytes then
    call('XTRIM', log, 'MAXLEN', '~', math.max(1, math.floor(keep_bytes / average * 0.9)))
  end
  local left = call('XLEN', log)
  if left < held then bytes = math.floor(average * left) end
end

if ends then call('HSET', meta, 'ends', ends) end
-- Lives are renewed once a minute (or four times in a short life), not with every batch.
local renew = now_ms - renewed > math.min(60, life / 4) * 1000
if renew then
  -- The meta key outlives the log and the repeats, so that no seq is given out twice.
  call('EXPIRE', log, life)
  call('EXPIRE', repeats, math.min(life, rotate_seconds * 2 + 60))
  call('EXPIRE', former, math.min(life, rotate_seconds * 2 + 60))
  renewed = now_ms
end
if renew or count > 0 or run ~= run_id then
  call('HSET', meta, 'state',
    struct.pack(packed, seq, bytes, rotated, base, renewed, #epoch, epoch, #run_id, run_id))
end
if renew then call('EXPIRE', meta, life * 2) end
if count * 3 == last - first + 1 then return epoch .. text_of('%.0f', first_seq) end
return reply
