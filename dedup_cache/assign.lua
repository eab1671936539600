-- Ids for fingerprints of several groups, in one step. KEYS[1]: the index. ARGV: nonce, ms for which values of a
-- generation that is over are kept, ms and ids after which a generation is over, then by group its name and its
-- fingerprints (16 bytes each). Returns the generation, then by group 2 * id + known per fingerprint (8 bytes each).
local CHUNK = 2000
local FIRST_GROUP = 5
local index, nonce, keep_ms = KEYS[1], ARGV[1], ARGV[2]
local last_ms, last_id = tonumber(ARGV[3]), tonumber(ARGV[4])

local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local head = redis.call('HMGET', index, 'generation', 'run_id', 'next', 'began_ms')
local generation, next_id, began_ms = head[1], tonumber(head[3]), tonumber(head[4])

local function groups_of(kind)
  local names = {}
  for _, field in ipairs(redis.call('HKEYS', index)) do
    names[#names + 1] = string.match(field, '^' .. kind .. ':(.*)$')
  end
  return names
end

local function values_of(of, name)
  return index .. ':' .. of .. ':values:' .. name
end

-- Another run of the server may have lost ids that were handed out: never go on counting. And a generation ends, so that
-- what Redis and the values topic hold is bounded: at most one that is over keeps its values here.
local lost = not generation or not next_id or not began_ms or head[2] ~= run_id
if lost or now_ms - began_ms >= last_ms or now_ms < began_ms - last_ms or next_id >= last_id then
  local former = redis.call('HGET', index, 'former')
  if former then
    for _, name in ipairs(groups_of('former')) do
      redis.call('UNLINK', values_of(former, name))
    end
  end
  local names = {}
  if generation then
    names = groups_of('group')
    for _, name in ipairs(names) do
      redis.call('UNLINK', index .. ':' .. generation .. ':ids:' .. name)
      redis.call('PEXPIRE', values_of(generation, name), keep_ms)
    end
  end
  redis.call('DEL', index)
  if generation then
    redis.call('HSET', index, 'former', generation)
    for _, name in ipairs(names) do
      redis.call('HSET', index, 'former:' .. name, 1)
    end
  end
  generation, next_id = nonce .. string.sub(run_id, 1, 8), 0
  redis.call('HSET', index, 'generation', generation, 'run_id', run_id, 'next', 0,
    'began_ms', string.format('%.0f', now_ms))
end

local function assign(group, prints)
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
    next_id = next_id + missing
    redis.call('HSET', index, 'next', string.format('%.0f', next_id), 'group:' .. group, 1)
    for first = 1, #writes, 2 * CHUNK do
      redis.call('HSET', ids, unpack(writes, first, math.min(first + 2 * CHUNK - 1, #writes)))
    end
  end
  return table.concat(entries)
end

local answer = {generation}
for at = FIRST_GROUP, #ARGV, 2 do
  answer[#answer + 1] = assign(ARGV[at], ARGV[at + 1])
end
return answer
