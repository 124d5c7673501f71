"""Rate limits: a token bucket per key, and back-off after failures.

    votes = RateLimit(burst=5, per_minute=12)
    votes.wait("voter-1")      # 0.0: allowed and counted; else the seconds until it is allowed

    passwords = Backoff()
    passwords.wait(address)    # seconds until the next attempt is allowed
    passwords.failed(address)  # and passwords.succeeded(address)

Clients choose the keys, so both classes store a limited number of keys and drop the least recently
used one. All methods are thread-safe.
"""

import ipaddress
import threading
import time
from collections import OrderedDict

MAX_KEYS = 10_000


class RateLimit:
    """A token bucket per key: `burst` events at once, `per_minute` on average."""

    def __init__(self, burst, per_minute, clock=time.monotonic):
        self._burst, self._per_second, self._clock = burst, per_minute / 60, clock
        self._lock, self._buckets = threading.Lock(), OrderedDict()  # key → (tokens, time)

    def wait(self, key):
        """Take a token of `key`. Returns 0.0, or the seconds until a token is available (then none
        is taken)."""
        with self._lock:
            now = self._clock()
            tokens, since = self._buckets.get(key, (self._burst, now))
            tokens = min(self._burst, tokens + (now - since) * self._per_second)
            wait = 0.0 if tokens >= 1 else (1 - tokens) / self._per_second
            _remember(self._buckets, key, (tokens - (wait == 0.0), now))
            return wait


class Backoff:
    """After `free` failures in a row each further failure doubles the wait, from `first` seconds up
    to `longest`. A success clears the key, and so do `longest` seconds without an attempt after the
    wait."""

    def __init__(self, free=3, first=1.0, longest=60.0, clock=time.monotonic):
        self._free, self._first, self._longest, self._clock = free, first, longest, clock
        self._lock, self._failures = threading.Lock(), OrderedDict()  # key → (count, end of wait)

    def wait(self, key):
        """The seconds until an attempt of `key` is allowed."""
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


class VisitorLimits:
    """Rate limits for questions and votes, per voter and per address.

    address_limit: questions, and votes, per minute and address.
    """

    def __init__(self, address_limit):
        # A person reads two answers before voting, so the limits of one voter are low.
        self._voters = {"ask": RateLimit(10, 20), "vote": RateLimit(5, 12)}
        burst = max(1, address_limit // 2)
        self._addresses = {action: RateLimit(burst, address_limit) for action in self._voters}

    def wait(self, action, voter, address):
        """Count one "ask" or "vote". Returns 0.0, or the seconds to wait (then it is refused).
        address None: only the voter is limited."""
        wait = self._voters[action].wait(voter)
        return wait or (0.0 if address is None else self._addresses[action].wait(address))


def _remember(table, key, value):
    table[key] = value
    table.move_to_end(key)
    if len(table) > MAX_KEYS:
        table.popitem(last=False)


def address_key(host):
    """The key of a client's address: an IPv4 address as it is; the /64 network of an IPv6 address,
    because one machine can use all of it. Other text is returned unchanged, None as "unknown"."""
    try:
        address = ipaddress.ip_address((host or "").partition("%")[0])
    except ValueError:
        return host or "unknown"
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped or address.version == 4:
        return str(mapped or address)
    return str(ipaddress.ip_network((address, 64), strict=False))
