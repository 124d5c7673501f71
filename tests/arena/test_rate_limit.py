"""Token buckets and back-off, on a clock of the test's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.arena.access import rate_limit
from minigpt.arena.access.rate_limit import Backoff, RateLimit, address_key


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_burst_then_a_steady_rate():
    clock = Clock()
    limit = RateLimit(burst=3, per_minute=6, clock=clock)
    assert [limit.wait("a") for _ in range(3)] == [0, 0, 0]
    assert limit.wait("a") == pytest.approx(10)
    assert limit.wait("b") == 0  # another key
    clock.now = 4
    assert limit.wait("a") == pytest.approx(6)  # what is refused costs nothing
    clock.now = 10.1
    assert limit.wait("a") == 0 and limit.wait("a") > 9
    clock.now = 1e6
    assert [limit.wait("a") > 0 for _ in range(4)] == [False, False, False, True]


@given(st.lists(st.floats(0, 20), max_size=60))
def test_never_more_than_the_rate(pauses):
    clock = Clock()
    limit = RateLimit(burst=2, per_minute=30, clock=clock)
    taken = 0
    for pause in pauses:
        clock.now += pause
        taken += limit.wait("key") == 0
    assert taken <= 2 + clock.now / 2 + 1e-6


def test_the_wait_doubles_and_a_success_ends_it():
    clock = Clock()
    backoff = Backoff(free=2, first=1, longest=10, clock=clock)
    waits = []
    for _ in range(7):
        backoff.failed("a")
        waits.append(backoff.wait("a"))
        clock.now += backoff.wait("a")
    assert waits == [0, 0, 1, 2, 4, 8, 10]
    assert backoff.wait("b") == 0
    backoff.succeeded("a")
    backoff.failed("a")
    assert backoff.wait("a") == 0
    for _ in range(3):
        backoff.failed("a")
    clock.now += backoff.wait("a") + 10.1  # no attempt for `longest` seconds
    backoff.failed("a")
    assert backoff.wait("a") == 0


def test_keys_are_bounded(monkeypatch):
    monkeypatch.setattr(rate_limit, "MAX_KEYS", 5)
    limit, backoff = RateLimit(1, 1), Backoff(free=0)
    for key in range(100):
        limit.wait(key)
        backoff.failed(key)
    assert len(limit._buckets) == len(backoff._failures) == 5
    assert limit.wait(99) > 0 and backoff.wait(99) > 0 and backoff.wait(0) == 0


@pytest.mark.parametrize(
    "host, key",
    [
        ("192.168.1.20", "192.168.1.20"),
        ("::ffff:192.168.1.20", "192.168.1.20"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
        (None, "unknown"),
    ],
)
def test_one_machine_is_one_address(host, key):
    assert address_key(host) == key
