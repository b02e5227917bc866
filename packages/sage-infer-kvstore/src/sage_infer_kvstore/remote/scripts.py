"""What the server does in one step: Lua over the index of one key space.

``KEYS``: the index (a sorted set of keys, least recently used first), the pins (a hash from a key to the ends of its
pins, in milliseconds of the server's clock), and a counter of uses. ``ARGV[1]``: the prefix of the blocks' own keys.
The server may evict any of them by itself, so a block is held if and only if its value exists.
A server without memory still runs these scripts, which free memory or need little.
"""

from __future__ import annotations

__all__ = ["COMMIT", "COUNT", "EVICT", "FORGET", "HELD", "PIN", "TOUCH", "UNPIN"]

_COMMON = """#!lua flags=allow-oom
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function held(key) return redis.call('EXISTS', ARGV[1] .. key) == 1 end
local function forget(key)
  redis.call('ZREM', KEYS[1], key)
  redis.call('HDEL', KEYS[2], key)
  return redis.call('UNLINK', ARGV[1] .. key)
end
local function pins(key)
  local ends = {}
  for text in string.gmatch(redis.call('HGET', KEYS[2], key) or '', '%d+') do
    if tonumber(text) > now then ends[#ends + 1] = tonumber(text) end
  end
  return ends
end
local function set_pins(key, ends)
  if #ends == 0 then return redis.call('HDEL', KEYS[2], key) end
  for i, value in ipairs(ends) do ends[i] = string.format('%.0f', value) end
  redis.call('HSET', KEYS[2], key, table.concat(ends, ' '))
end
local function evict(count, keep)
  local done, from = 0, 0
  while done < count do
    local some = redis.call('ZRANGE', KEYS[1], from, from + 63)
    if #some == 0 then break end
    for _, key in ipairs(some) do
      if done < count and not keep[key] and #pins(key) == 0 then
        done = done + forget(key)
      else
        from = from + 1
      end
    end
  end
  return done
end
"""

HELD = (
    _COMMON
    + """
local found = {}
for i = 2, #ARGV do found[i - 1] = held(ARGV[i]) and '1' or '0' end
return table.concat(found)
"""
)
"""``1`` or ``0`` for each key, as one string."""

TOUCH = (
    _COMMON
    + """
local found, clock = {}, redis.call('INCRBY', KEYS[3], #ARGV)
for i = 2, #ARGV do
  if held(ARGV[i]) then
    redis.call('ZADD', KEYS[1], clock + i - #ARGV, ARGV[i])
    found[i - 1] = '1'
  else
    forget(ARGV[i])
    found[i - 1] = '0'
  end
end
return table.concat(found)
"""
)
"""As ``HELD``; counts as a use of the blocks."""

COMMIT = (
    _COMMON
    + """
local capacity, fresh, keep, evicted = tonumber(ARGV[2]), tonumber(ARGV[3]), {}, 0
for i = 4, #ARGV do keep[ARGV[i]] = true end
local clock = redis.call('INCRBY', KEYS[3], fresh)
for i = 4, 3 + fresh do
  local key = ARGV[i]
  if not redis.call('ZSCORE', KEYS[1], key) then
    while redis.call('ZCARD', KEYS[1]) >= capacity do
      local before = redis.call('ZCARD', KEYS[1])
      evicted = evicted + evict(1, keep)
      if redis.call('ZCARD', KEYS[1]) == before then break end
    end
  end
  if redis.call('ZSCORE', KEYS[1], key) or redis.call('ZCARD', KEYS[1]) < capacity then
    redis.call('ZADD', KEYS[1], clock - fresh + i - 3, key)
  else
    forget(key)
  end
end
return evicted
"""
)
"""Enter blocks whose values were just set. ``ARGV[2]`` is the capacity, ``ARGV[3]`` the number of new keys that follow;
after them come keys that must not be evicted. New blocks without room are removed. Returns the number of evictions."""

EVICT = _COMMON + "return evict(tonumber(ARGV[2]), {})"
FORGET = _COMMON + "for i = 2, #ARGV do forget(ARGV[i]) end return 0"

PIN = (
    _COMMON
    + """
local found = {}
for i = 3, #ARGV do
  local key = ARGV[i]
  if held(key) then
    local ends = pins(key)
    ends[#ends + 1] = now + tonumber(ARGV[2])
    set_pins(key, ends)
    found[i - 2] = '1'
  else
    found[i - 2] = '0'
  end
end
return table.concat(found)
"""
)
"""``ARGV[2]``: milliseconds until the pins end."""

UNPIN = (
    _COMMON
    + """
for i = 2, #ARGV do
  local ends = pins(ARGV[i])
  table.sort(ends)
  ends[#ends] = nil
  set_pins(ARGV[i], ends)
end
return 0
"""
)

COUNT = (
    _COMMON
    + """
local pinned = 0
for _, key in ipairs(redis.call('HKEYS', KEYS[2])) do
  if held(key) and #pins(key) > 0 then pinned = pinned + 1 else redis.call('HDEL', KEYS[2], key) end
end
return {redis.call('ZCARD', KEYS[1]), pinned}
"""
)
"""Blocks in the index, and how many are pinned."""
