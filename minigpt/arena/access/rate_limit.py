"""Limits on how often something may happen: a token bucket per key, and back-off after failures.

    votes = RateLimit(burst=5, per_minute=12)
    votes.wait("voter-1")      # 0.0: taken; else the seconds until the next one may be taken

    passwords = Backoff()
    passwords.wait(address)    # seconds until the next attempt is read
    passwords.failed(address)  # and passwords.succeeded(address)

Keys are chosen by clients, so both keep a bounded number of them and forget the least recently
used. All methods are safe to call from any thread.
"""

import ipaddress
import threading
import time
from collections import OrderedDict

MOST_KEYS = 10_000


class RateLimit:
    """A token bucket for each key: `burst` events at once, `per_minute` in the long run."""

    def __init__(self, burst, per_minute, clock=time.monotonic):
        self._burst, self._per_second, self._clock = burst, per_minute / 60, clock
        self._lock, self._buckets = threading.Lock(), OrderedDict()  # key → (tokens, time)

    def wait(self, key):
        """Take a token of `key`. Returns 0.0, or the seconds until there is one (none is taken)."""
        with self._lock:
            now = self._clock()
            tokens, since = self._buckets.get(key, (self._burst, now))
            tokens = min(self._burst, tokens + (now - since) * self._per_second)
            wait = 0.0 if tokens >= 1 else (1 - tokens) / self._per_second
            _remember(self._buckets, key, (tokens - (wait == 0.0), now))
            return wait


class Backoff:
    """After `free` failures in a row each further one doubles the wait, from `first` seconds up to
    `longest`. A success, or `longest` seconds without an attempt after the wait, clears the key."""

    def __init__(self, free=3, first=1.0, longest=60.0, clock=time.monotonic):
        self._free, self._first, self._longest, self._clock = free, first, longest, clock
        self._lock, self._failures = threading.Lock(), OrderedDict()  # key → (count, end of wait)

    def wait(self, key):
        """The seconds for which attempts of `key` are not read."""
        with self._lock:
            return max(0.0, self._state(key)[1] - self._clock())

    def failed(self, key):
        """Count a failure of `key`."""
        with self._lock:
            count, _ = self._state(key)
            doublings = count - self._free
            pause = min(self._longest, self._first * 2.0 ** min(doublings, 30))
            until = self._clock() + (pause if doublings >= 0 else 0.0)
            _remember(self._failures, key, (count + 1, until))

    def succeeded(self, key):
        """Forget the failures of `key`."""
        with self._lock:
            self._failures.pop(key, None)

    def _state(self, key):
        count, until = self._failures.get(key, (0, -self._longest))
        return (0, until) if self._clock() - until > self._longest else (count, until)


def _remember(table, key, value):
    table[key] = value
    table.move_to_end(key)
    if len(table) > MOST_KEYS:
        table.popitem(last=False)


def address_key(host):
    """The key of a client's address: an IPv4 address itself, of an IPv6 one its /64 network, which
    one machine can fill. Anything else as it is; None (no address is known) is "unknown"."""
    try:
        address = ipaddress.ip_address((host or "").partition("%")[0])
    except ValueError:
        return host or "unknown"
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped or address.version == 4:
        return str(mapped or address)
    return str(ipaddress.ip_network((address, 64), strict=False))
