-- Values whose transaction has committed. KEYS[1]: the index. ARGV: group, generation, fingerprints (16 bytes each),
-- entries (8 bytes each, 2 * id), then per fingerprint its check (4 bytes) and value as one string.
-- Returns how many were stored; -1 if the generation is over.
local CHUNK = 1000
local FIRST_VALUE = 5
local index, group, generation, prints, entries = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local head = redis.call('HMGET', index, 'generation', 'run_id')
if head[1] ~= generation or head[2] ~= run_id then
  return -1
end

local ids = index .. ':' .. generation .. ':ids:' .. group
local values = index .. ':' .. generation .. ':values:' .. group
local stored, total = 0, #prints / 16
for first = 1, total, CHUNK do
  local last, fields = math.min(first + CHUNK - 1, total), {}
  for i = first, last do
    fields[i - first + 1] = string.sub(prints, 16 * i - 15, 16 * i)
  end
  local found, blobs, known = redis.call('HMGET', ids, unpack(fields)), {}, {}
  for i = first, last do
    local entry = string.sub(entries, 8 * i - 7, 8 * i)
    local marked = struct.pack('<I8', struct.unpack('<I8', entry) + 1)
    local assigned = found[i - first + 1]
    if assigned == entry or assigned == marked then
      blobs[#blobs + 1], blobs[#blobs + 2] = entry, ARGV[FIRST_VALUE + i - 1]
      known[#known + 1], known[#known + 2] = fields[i - first + 1], marked
      stored = stored + 1
    end
  end
  if #known > 0 then
    redis.call('HSET', values, unpack(blobs))
    redis.call('HSET', ids, unpack(known))
  end
end
return stored
