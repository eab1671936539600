-- Ids for fingerprints, in one step. KEYS[1]: the index. ARGV: group, nonce, fingerprints (16 bytes each), ms for which
-- values of a generation that is over are kept. Returns the generation and 2 * id + known per fingerprint (8 bytes each).
local CHUNK = 2000
local index, group, nonce, prints = KEYS[1], ARGV[1], ARGV[2], ARGV[3]

local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local head = redis.call('HMGET', index, 'generation', 'run_id', 'next')
local generation, next_id = head[1], tonumber(head[3])

-- Another run of the server may have lost ids that were handed out: never go on counting.
if not generation or not next_id or head[2] ~= run_id then
  if generation then
    for _, field in ipairs(redis.call('HKEYS', index)) do
      local name = string.match(field, '^group:(.*)$')
      if name then
        redis.call('UNLINK', index .. ':' .. generation .. ':ids:' .. name)
        redis.call('PEXPIRE', index .. ':' .. generation .. ':values:' .. name, ARGV[4])
      end
    end
  end
  generation, next_id = nonce .. string.sub(run_id, 1, 8), 0
  redis.call('DEL', index)
  redis.call('HSET', index, 'generation', generation, 'run_id', run_id, 'next', 0)
end

local ids = index .. ':' .. generation .. ':ids:' .. group
local fields, entries, fresh, writes, missing = {}, {}, {}, {}, 0
for i = 1, #prints / 16 do
  fields[i] = string.sub(prints, 16 * i - 15, 16 * i)
end
for first = 1, #fields, CHUNK do
  local last = math.min(first + CHUNK - 1, #fields)
  local found = redis.call('HMGET', ids, unpack(fields, first, last))
  for i = first, last do
    local field = fields[i]
    local entry = found[i - first + 1] or fresh[field]
    if not entry then
      entry = struct.pack('<I8', 2 * (next_id + missing))
      missing = missing + 1
      fresh[field] = entry
      writes[2 * missing - 1], writes[2 * missing] = field, entry
    end
    entries[i] = entry
  end
end

-- The counter goes first: should a later write fail, ids are lost and not handed out twice.
if missing > 0 then
  redis.call('HSET', index, 'next', string.format('%.0f', next_id + missing), 'group:' .. group, 1)
  for first = 1, #writes, 2 * CHUNK do
    redis.call('HSET', ids, unpack(writes, first, math.min(first + 2 * CHUNK - 1, #writes)))
  end
end
return {generation, table.concat(entries)}
