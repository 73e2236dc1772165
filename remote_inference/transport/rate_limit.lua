-- One call of a process about one limit key: what has ended, what still runs, and leave for one more request.
--
-- KEYS: state, slots, leases, line (see below); all with one hash tag. ARGV[1]: JSON; `Account` in remote_inference/cluster/account.py
-- has the words. Answers with JSON. All that is asked for happens, or nothing: Redis runs one script at a time.
--
-- The time is Redis's own, for everybody (a test may give another one: "now"). What goes out is relative to it, in
-- seconds, so that no two clocks are ever compared.
--
-- state   a hash. "s": the figures below. "S<slot>": what was reserved in a slot. "P<id>": a permit that runs
-- slots   a sorted set: slots by the time of the youngest reservation in them
-- leases  a sorted set: permits by the time at which their place comes back if nobody renews it
-- line    a hash: of each process that waits, what it waits for

local STATE, SLOTS, LEASES, LINE = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local DIMENSIONS = { 'requests', 'tokens', 'input_tokens', 'output_tokens' } -- an amount is a list in this order
-- How much quicker than the limit permits come while the last minute's worth was not used: by twice the unused share,
-- at most by so much.
local CATCH_UP = 0.2
local SHORTEST_WAIT, LONGEST_WAIT = 0.1, 2 -- seconds, where only the end of another request makes room
local HOLD_WEIGHT = 0.1 -- of the newest request in the mean time for which permits are held
local LATE = 0.25 -- seconds by which a process in the line may be late before it is passed over
local GREAT_STEP = 1 -- seconds
local ROUNDING = 1e-9 -- seconds: who waits for a difference of two times may be that early
local SLACK = 0.03 -- of a limit: by so much the provider may be ahead (of an estimate, say) without meaning anything
local PAGE = 32 -- slots read at a time

local ask = cjson.decode(ARGV[1])
local pack, unpacked, call = cmsgpack.pack, cmsgpack.unpack, redis.call

local now = ask.now
if not now then
  local time = call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function text(number) -- Lua's own way keeps 14 digits, and times have more
  return string.format('%.17g', number)
end

-- The state. It is made anew where there is none, where it is from before what the process has seen (a replica that
-- took over, or a snapshot), and where a part of it was evicted.

local stored = call('HGET', STATE, 's')
local s = stored and unpacked(stored)
local behind = s and ask.incarnation == s.incarnation and ask.seen > s.seen
if s and (behind or call('ZCARD', SLOTS) ~= s.slots or call('ZCARD', LEASES) ~= s.running) then
  s = nil
end
if not s then
  call('DEL', STATE, SLOTS, LEASES, LINE)
  s = {
    incarnation = ask.who .. ':' .. text(now),
    born = now, -- when it was made
    last = now, offset = 0, -- the newest time, and what is added to Redis's so that it never goes back
    seen = 0, -- counts permits
    slots = 0, slot = 0, first = now, youngest = now, -- how many slots; the newest
    used = { 0, 0, 0, 0 },
    level = {}, filled = now, -- what may go at once; when that was
    running = 0, deployments = {}, hold = 1,
    paused = 0, ramp = 0, admitted = 0,
    closed = 0, -- until those who knew the state before it was lost have told what they know
    place = 0, -- counts those who stand in line
  }
end

now = now + s.offset
if now < s.last then -- Redis's clock was set back: for us it stands still, and after a great step goes on from here
  if s.last - now > GREAT_STEP then
    s.offset = s.offset + s.last - now
  end
  now = s.last
end
s.last = now

local span, lease, burst = ask.span, ask.lease, ask.burst
local limits = {}
for index, name in ipairs(DIMENSIONS) do
  limits[index] = ask.limits[name] or false
end

local function save()
  call('HSET', STATE, 's', pack(s))
  local life = math.ceil(1000 * (2 * span + lease + math.max(s.paused - now, 0) + ask.ramp))
  call('PEXPIRE', STATE, life)
  call('PEXPIRE', SLOTS, life)
  call('PEXPIRE', LEASES, life)
  call('PEXPIRE', LINE, life)
end

if ask.incarnation ~= '' and ask.incarnation ~= s.incarnation then
  s.closed = math.max(s.closed, s.born + ask.recall)
  save()
  return cjson.encode({ lost = true, incarnation = s.incarnation })
end

-- The window

local function add(slot, amounts, sign)
  local known = call('HGET', STATE, 'S' .. slot)
  if not known then
    return false
  end
  local sums = unpacked(known)
  for index = 1, 4 do
    sums[index] = sums[index] + sign * amounts[index]
    s.used[index] = s.used[index] + sign * amounts[index]
  end
  call('HSET', STATE, 'S' .. slot, pack(sums))
  return true
end

local function open_slot(slot, at)
  call('HSET', STATE, 'S' .. slot, pack({ 0, 0, 0, 0 }))
  call('ZADD', SLOTS, text(at), slot)
  s.slots = s.slots + 1
end

local function forget()
  local before = text(now - span + ROUNDING)
  for _, slot in ipairs(call('ZRANGEBYSCORE', SLOTS, '-inf', before)) do
    local sums = call('HGET', STATE, 'S' .. slot)
    if sums then
      sums = unpacked(sums)
      for index = 1, 4 do
        s.used[index] = s.used[index] - sums[index]
      end
      call('HDEL', STATE, 'S' .. slot)
    end
  end
  s.slots = s.slots - call('ZREMRANGEBYSCORE', SLOTS, '-inf', before)
end

-- The first limit that leaves no room. A cost above a whole limit counts as the limit: it is sent alone, and the provider decides.
local function lacking(used, amounts)
  for index = 1, 4 do
    local limit = limits[index]
    if limit and used[index] + math.min(amounts[index], limit) > limit then
      return DIMENSIONS[index]
    end
  end
end

local function window_opens(ahead, amounts)
  local used = {}
  for index = 1, 4 do
    used[index] = s.used[index] + ahead[index]
  end
  local code = lacking(used, amounts)
  local at, missing, from = now, code, 0
  while missing do
    local page = call('ZRANGE', SLOTS, from, from + PAGE - 1, 'WITHSCORES')
    if #page == 0 then
      break
    end
    for place = 1, #page, 2 do
      local sums = unpacked(call('HGET', STATE, 'S' .. page[place]))
      for index = 1, 4 do
        used[index] = used[index] - sums[index]
      end
      at = tonumber(page[place + 1]) + span
      missing = lacking(used, amounts)
      if not missing then
        break
      end
    end
    from = from + PAGE
  end
  return at, code
end

-- The pace: a bucket for each limit, as large as so many seconds' worth. It fills as quickly as the window forgets,
-- and a little quicker while the window is not full, so that what a quiet time left unused can be made up for.

local paced = burst < ask.window

local function size(limit)
  return math.max(limit * burst / ask.window, 1)
end

local function rate(index)
  local limit = limits[index]
  local unused = math.max(1 - s.used[index] / limit, 0)
  return limit / (span + ask.grain) * (1 + math.min(2 * unused, CATCH_UP))
end

local function fill()
  for index = 1, 4 do
    local limit = limits[index]
    if not limit then
      s.level[index] = 0 -- one that is configured later begins with an empty bucket
    else
      local level = s.level[index] or size(limit)
      s.level[index] = math.min(level + rate(index) * (now - s.filled), size(limit))
    end
  end
  s.filled = now
end

local function take_level(amounts, sign)
  for index = 1, 4 do
    if limits[index] then
      s.level[index] = math.min(s.level[index] - sign * amounts[index], size(limits[index]))
    end
  end
end

local function pace_opens(ahead, amounts)
  local at, code = now, nil
  for index = 1, paced and 4 or 0 do
    local limit = limits[index]
    if limit and amounts[index] > 0 then
      -- What is above the bucket's size passes when it is full. Behind others there is room only beside theirs.
      local needed = math.min(ahead[index], size(limit)) + math.min(amounts[index], size(limit))
      local due = now + (needed - s.level[index]) / rate(index)
      if due > at + ROUNDING then
        at, code = due, DIMENSIONS[index]
      end
    end
  end
  return at, code
end

-- Permits that run

local function drop(id, permit)
  call('HDEL', STATE, 'P' .. id)
  call('ZREM', LEASES, id)
  s.running = s.running - 1
  local left = (s.deployments[permit.deployment] or 1) - 1
  s.deployments[permit.deployment] = left > 0 and left or nil
end

local function note(id, permit)
  call('HSET', STATE, 'P' .. id, pack(permit))
  s.running = s.running + 1
  s.deployments[permit.deployment] = (s.deployments[permit.deployment] or 0) + 1
end

local function permit_of(id)
  local known = call('HGET', STATE, 'P' .. id)
  return known and unpacked(known)
end

local function end_permit(ended)
  local permit = permit_of(ended.id)
  if permit then
    if ended.actual then
      local change = {}
      for index = 1, 4 do
        change[index] = ended.actual[index] - permit.amounts[index]
      end
      if add(permit.slot, change, 1) then
        take_level(change, 1)
      end
    end
    s.hold = s.hold + HOLD_WEIGHT * (ended.held - s.hold)
    drop(ended.id, permit)
  elseif ended.over then -- unknown by now: only what it cost more than was reserved may still be missing
    add(ended.slot, ended.over, 1)
  end
end

local function expire_leases()
  for _, id in ipairs(call('ZRANGEBYSCORE', LEASES, '-inf', text(now))) do
    local permit = permit_of(id)
    if permit then
      drop(id, permit)
    else
      call('ZREM', LEASES, id)
    end
  end
end

local function renew(held)
  if not permit_of(held.id) then
    note(held.id, { slot = held.slot, deployment = held.deployment, amounts = held.amounts })
  end
  call('ZADD', LEASES, text(now + lease), held.id)
end

-- The pause

local function pause_opens()
  if now < s.closed then
    return s.closed, 'store_unavailable'
  end
  if now < s.paused then
    return s.paused, 'paused'
  end
  if now >= s.ramp then
    return now, nil
  end
  local at = s.paused + ask.ramp_step * math.log(s.admitted + 1) / math.log(2)
  if at > now + ROUNDING then
    return at, 'ramp'
  end
  return now, nil
end

-- The line: who asks in vain and waits stands in it, by priority and then by age. What they wait for is not given to
-- others; so a large request is not starved by small ones of another process.

local function those_ahead(wanted)
  local ahead, before, mine = { 0, 0, 0, 0 }, 0, nil
  local entries = call('HGETALL', LINE)
  local others = {}
  for index = 1, #entries, 2 do
    local entry = unpacked(entries[index + 1])
    if entries[index] == ask.who then
      mine = entry
    elseif entry.by < now then -- it did not come, or is dead
      call('HDEL', LINE, entries[index])
    else
      others[#others + 1] = entry
    end
  end
  local place = mine and mine.priority == wanted.priority and mine.place or nil
  for _, entry in ipairs(others) do
    if entry.priority > wanted.priority or (entry.priority == wanted.priority and (not place or entry.place < place)) then
      before = before + 1
      for index = 1, 4 do
        ahead[index] = ahead[index] + entry.amounts[index]
      end
    end
  end
  return ahead, before, place
end

local NOBODY = { 0, 0, 0, 0 }

local function due_at(ahead, amounts)
  local at, code = window_opens(ahead, amounts)
  for _, opens in ipairs({ pace_opens, pause_opens }) do
    local later, why = opens(ahead, amounts)
    if why and later > at then
      at, code = later, why
    end
  end
  return at, code
end

local function judge(wanted)
  local ahead, before, place = those_ahead(wanted)
  local at, code = due_at(NOBODY, wanted.amounts)
  if before > 0 then
    local later, why = due_at(ahead, wanted.amounts)
    if why then
      at, code = later, code or 'queue'
    end
  end
  local own = wanted.max and (s.deployments[wanted.deployment] or 0) >= wanted.max
  local all = ask.limits.concurrent and s.running + before >= ask.limits.concurrent
  if own or all then
    local running = own and s.deployments[wanted.deployment] or s.running
    local freed = now + math.min(math.max(s.hold / math.max(running, 1), SHORTEST_WAIT), LONGEST_WAIT)
    code = code or 'concurrency'
    at = math.max(at, freed)
  end
  return at, code, own, place
end

local function grant(wanted)
  if s.slot == 0 or now - s.first >= ask.grain or not call('HGET', STATE, 'S' .. s.slot) then
    s.slot, s.first = s.slot + 1, now
    open_slot(s.slot, now)
  elseif now > s.youngest then
    call('ZADD', SLOTS, text(now), s.slot)
  end
  s.youngest = now
  s.seen = s.seen + 1
  add(s.slot, wanted.amounts, 1)
  take_level(wanted.amounts, 1)
  if now < s.ramp then
    s.admitted = s.admitted + 1
  end
  note(wanted.id, { slot = s.slot, deployment = wanted.deployment, amounts = wanted.amounts })
  call('ZADD', LEASES, text(now + lease), wanted.id)
  call('HDEL', LINE, ask.who)
  return s.slot
end

-- What the provider says is left: less than is counted here means that somebody else uses the key too.
local function heed(left)
  local missing, lacks = { 0, 0, 0, 0 }, false
  for index, name in ipairs(DIMENSIONS) do
    local more = limits[index] and left[name] and limits[index] - s.used[index] - left[name] or 0
    if more > SLACK * (limits[index] or 0) then
      missing[index], lacks = more, true
    end
  end
  if lacks then
    s.slot, s.first, s.youngest = s.slot + 1, now, now
    open_slot(s.slot, now)
    add(s.slot, missing, 1)
  end
end

-- The call

forget()
expire_leases()
fill()
for _, slot in ipairs(ask.spent or {}) do -- told anew, after the state was lost
  if slot.age < span and not call('HGET', STATE, 'S' .. slot.slot) then
    open_slot(slot.slot, now - slot.age)
    add(slot.slot, slot.amounts, 1)
  end
end
for _, held in ipairs(ask.held or {}) do
  renew(held)
end
for _, ended in ipairs(ask.ends or {}) do
  end_permit(ended)
end
if ask.left then
  heed(ask.left)
end
if ask.pause and now + ask.pause > math.max(s.paused, now) then
  s.paused, s.admitted = now + ask.pause, 0
  s.ramp = s.paused + ask.ramp
end
if ask.resume and now < s.paused then
  s.paused, s.admitted, s.ramp = now, 0, now + ask.ramp
end

local answer = { incarnation = s.incarnation, paused = math.max(s.paused - now, 0) }
if ask.acquire then
  local wanted = ask.acquire
  local known = permit_of(wanted.id) -- the answer to it was lost, and it is asked again
  if known then
    answer.slot = known.slot
  else
    local at, code, own, place = judge(wanted)
    if code then
      answer.wait, answer.code, answer.own = at - now, code, own
      if own or at - now > wanted.patience then
        call('HDEL', LINE, ask.who)
      else
        if not place then
          s.place = s.place + 1
          place = s.place
        end
        local entry = { priority = wanted.priority, place = place, by = at + LATE, amounts = wanted.amounts }
        call('HSET', LINE, ask.who, pack(entry))
      end
    else
      answer.slot = grant(wanted)
    end
  end
elseif ask.due then
  local at, code = judge(ask.due)
  answer.wait = code and at - now or 0
end
if ask.look then
  answer.used, answer.running, answer.deployments = s.used, s.running, s.deployments
end
answer.seen = s.seen
save()
return cjson.encode(answer)
