"""Battles: pairing, common settings, and sides that misbehave."""

import itertools
import random
import re
import socket
import threading
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.arena.battles import (
    MESSAGES,
    Battle,
    DisplayText,
    SettingRefused,
    SideState,
    choose_pair,
    common_settings,
)
from minigpt.common.errors import UserError

PATIENCE = 20  # seconds: what should be over long before, on the busiest machine
ENDLESS = threading.Event()  # nobody sets it: to wait for it is to block


class Side:
    """A side that writes `pieces`, then ends; an Exception among them is raised, and a callable
    called. on_close() is what close() does."""

    def __init__(self, *pieces, takes=("temperature", "seed"), on_close=None, **after):
        self.pieces, self.takes, self.on_close = pieces, set(takes), on_close
        self.closed, self.asked = 0, None
        vars(self).update(after)

    def stream(self, messages, settings):
        self.asked = list(messages), dict(settings)
        settings.clear()  # what is handed to one side is its own
        messages.clear()
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece() or "" if callable(piece) else piece

    def close(self):
        self.closed += 1
        if self.on_close:
            self.on_close()


class SocketSide(Side):
    """A side that reads from a socket, as one with a server does: close() shuts it."""

    def __init__(self):
        super().__init__()
        self.here, self.server = socket.socketpair()

    def stream(self, messages, settings):
        while data := self.here.recv(100):
            yield data.decode()
        self.gone = True

    def close(self):
        super().close()
        self.here.shutdown(socket.SHUT_RDWR)


ASK = [{"role": "user", "content": "问"}]


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def fight(*sides, settings=(), deadline_seconds=PATIENCE, **options):
    """The SideStates of a battle that has ended."""
    battle = Battle(ASK, dict(settings), sides, deadline_seconds, **options)
    assert battle.wait(2 * PATIENCE) and battle.ended
    return battle.snapshot()


def block():
    ENDLESS.wait(2 * PATIENCE)


# -- pairing ---------------------------------------------------------------------------------------


def test_any_pair_in_any_order():
    rng = random.Random(0)
    found = Counter(choose_pair(["a", "b", "c"], {}, rng) for _ in range(1200))
    assert set(found) == set(itertools.permutations("abc", 2))
    assert all(150 < n < 250 for n in found.values())  # 200 each, but for chance


def test_the_pair_that_has_met_least():
    rng = random.Random(0)
    counts = {frozenset("ab"): 3, frozenset("ac"): 1, frozenset("bc"): 2}
    found = {choose_pair(["a", "b", "c"], counts, rng, "least") for _ in range(50)}
    assert found == {("a", "c"), ("c", "a")}
    counts = {frozenset("ab"): 3, frozenset("cd"): 3}  # the others never
    found = {frozenset(choose_pair("abcd", counts, rng, "least")) for _ in range(200)}
    assert found == set(map(frozenset, ("ac", "ad", "bc", "bd")))


def test_least_evens_out_the_counts():
    rng, counts = random.Random(0), Counter({frozenset("ab"): 7})
    for _ in range(9 * 10 - 7 + 6):
        counts[frozenset(choose_pair("abcde", counts, rng, "least"))] += 1
    assert max(counts.values()) - min(counts.values()) <= 1 and len(counts) == 10


@pytest.mark.parametrize("names", [[], ["a"]])
def test_a_battle_needs_two_models(names):
    with pytest.raises(UserError, match=f"there is {len(names)}"):
        choose_pair(names, {}, random.Random(0))


# -- settings --------------------------------------------------------------------------------------


def test_a_setting_that_one_side_does_not_support_is_dropped():
    wanted = {"temperature": 0.5, "top_k": 3, "seed": 1}
    sides = Side("x", takes={"temperature", "seed"}), Side("y", takes={"top_k", "seed"})
    assert common_settings(wanted, sides) == ({"seed": 1}, ["temperature", "top_k"])
    battle = Battle(ASK, wanted, sides)
    assert battle.wait(PATIENCE)
    assert (battle.settings, battle.unsupported) == ({"seed": 1}, ["temperature", "top_k"])
    for side in sides:
        assert side.asked == ([{"role": "user", "content": "问"}], {"seed": 1})


class Repeated:
    """A side that writes what it was asked with, and whether it refuses it; all that again() makes
    are listed in `made`. failing: it breaks off instead."""

    takes = {"temperature", "top_k", "seed"}

    def __init__(self, refuses=(), failing=False, made=None):
        self.refuses, self.failing = set(refuses), failing
        self.made = [] if made is None else made
        self.made.append(self)
        self.closed = 0

    def again(self):
        return Repeated(self.refuses, self.failing, self.made)

    def stream(self, messages, settings):
        if self.failing:
            raise OSError("gone")
        for name in settings:
            if name in self.refuses:
                raise SettingRefused(name)
        yield ",".join(sorted(settings))

    def close(self):
        self.closed += 1


def test_a_setting_that_is_refused_is_left_out_for_all():
    """Also for a side that has ended already."""
    wanted = {"temperature": 0.5, "top_k": 3, "seed": 1}
    for _ in range(20):  # in any order
        sides = [Repeated(), Repeated({"top_k", "seed"}), Repeated({"top_k"}), Repeated((), True)]
        battle = Battle(ASK, wanted, sides, PATIENCE)
        assert battle.wait(PATIENCE) and battle.ended
        states = battle.snapshot()
        assert [state.text for state in states] == ["temperature"] * 3 + [""]
        assert [state.status for state in states] == ["done"] * 3 + ["failed"]
        assert battle.settings == {"temperature": 0.5}
        assert sorted(battle.unsupported) == ["seed", "top_k"]
        assert len(sides[0].made) == 3
        for each in (each for side in sides for each in side.made):
            until(lambda each=each: each.closed == 1)


def test_a_battle_that_was_stopped_does_not_begin_again():
    blocked = threading.Event()

    class Late(Repeated):
        def stream(self, messages, settings):
            blocked.wait(PATIENCE)
            yield from super().stream(messages, settings)

    sides = [Late({"seed"}), Repeated()]
    battle = Battle(ASK, {"seed": 1}, sides, PATIENCE)
    until(lambda: battle.snapshot()[1].status == "done")
    battle.stop()
    blocked.set()
    assert battle.wait(PATIENCE)
    until(lambda: sides[0].closed)
    assert [len(side.made) for side in sides] == [1, 1] and battle.unsupported == []


# -- a battle --------------------------------------------------------------------------------------


def test_two_sides_generate_and_end():
    good = Side("黄", "", "河", usage={"completion_tokens": 7}, finish_reason="length")
    plain = Side("长江")
    one, other = fight(good, plain)
    assert one.text == "黄河" and one.status == other.status == "done"
    assert (one.chunks, one.tokens, one.end_reason) == (2, 7, "length")
    assert (other.chunks, other.tokens, other.end_reason) == (1, None, "stop")
    assert one.error is one.message is None
    assert 0 <= one.first_token_seconds <= one.elapsed < PATIENCE
    until(lambda: good.closed == plain.closed == 1)


def test_snapshots_show_the_progress():
    begin, go_on = threading.Event(), threading.Event()

    def wait_for(event):
        return lambda: event.wait(PATIENCE) and None

    battle = Battle(ASK, {}, [Side("\0", wait_for(begin), "黄", wait_for(go_on), "河")])
    (state,) = battle.snapshot()
    assert (state.text, state.status, state.first_token_seconds) == ("", "waiting", None)
    assert state.end_reason is None and not battle.ended and not battle.wait(0)
    until(lambda: battle.snapshot()[0].chunks)  # one with nothing in it to show
    assert battle.snapshot()[0].status == "waiting"
    begin.set()
    until(lambda: battle.snapshot()[0].status == "writing")
    (state,) = battle.snapshot()
    assert state.text == "黄" and 0 < state.first_token_seconds <= state.elapsed
    until(lambda: battle.snapshot()[0].elapsed > state.elapsed)
    go_on.set()
    assert battle.wait(PATIENCE)
    assert battle.snapshot() == battle.snapshot() and battle.snapshot()[0].text == "黄河"


def test_an_empty_answer_is_done():
    (state,) = fight(Side())
    assert (state.text, state.status, state.first_token_seconds) == ("", "done", None)
    assert state.tokens_per_second is None


def test_half_a_character_at_the_end():
    one, other = fight(Side("半\ud83d"), Side("半\ud83d", OSError()))
    assert one.text == other.text == "半"


def test_tokens_per_second():
    state = SideState("…", "done", 0.5, 2.5, 11, 21, "stop", None, None)
    assert state.tokens_per_second == 10  # 20 after the first, in 2 s
    assert state._replace(tokens=None).tokens_per_second == 5
    assert state._replace(tokens=1).tokens_per_second is None
    assert state._replace(elapsed=0.5).tokens_per_second is None
    assert state._replace(chunks=1).tokens_per_second is None  # all came at once


# -- sides that misbehave --------------------------------------------------------------------------

NAME = "teammate-7b"
TELLING = ConnectionRefusedError(f"http://10.0.0.7:5000/v1: {NAME} refused")


def babble():
    return itertools.repeat("啊")


def bad_sides():
    """What each kind is called → a side of it."""
    return {
        "refuses": Side(TELLING),
        "breaks off": Side("半", TELLING),
        "never answers": Side(block),
        "stalls": Side("半", block),
        "babbles": Side(*["啊"] * 10, lambda: time.sleep(0.01) or "啊", block),
        "blocks in close": Side("半", block, on_close=block),
        "fails in close": Side("半", block, on_close=lambda: 1 / 0),
        "writes no text": Side("半", 7),
        "writes bytes": Side(b"\xe5\x8d\x8a"),
        "has odd usage": Side("全", usage=[TELLING]),
        "is silent for ever": Side(*[""] * 1000, block),
    }


@pytest.mark.parametrize("kind", list(bad_sides()))
def test_a_bad_side_affects_no_other_and_reveals_nothing(kind):
    bad, good = bad_sides()[kind], Side("黄河", lambda: time.sleep(0.05))
    battle = Battle(ASK, {}, [bad, good], deadline_seconds=1.0)
    until(lambda: battle.snapshot()[1].status == "done")
    assert battle.wait(PATIENCE)
    state, other = battle.snapshot()
    assert (other.text, other.error) == ("黄河", None)
    assert state.status == "failed" and state.error
    assert state.end_reason in ("failed", "deadline") and state.message in MESSAGES.values()
    assert not re.search(f"{NAME}|10\\.0|refuse|Error", state.message)
    assert (NAME in state.error) == (kind in ("refuses", "breaks off"))
    if state.end_reason == "deadline":
        assert 1.0 <= state.elapsed < PATIENCE and "1 s" in state.error
    until(lambda: bad.closed == good.closed == 1)


def test_an_endless_side_is_ended():
    class Endless(Side):
        def stream(self, messages, settings):
            yield from babble()

    (state,) = fight(Endless(), deadline_seconds=0.3, max_chars=10**9)
    assert (state.status, state.end_reason) == ("failed", "deadline") and state.text[:2] == "啊啊"
    (state,) = fight(Endless(), max_chars=50)
    assert (state.status, state.end_reason) == ("done", "too long") and state.text == "啊" * 50


def test_text_after_the_end_is_ignored():
    go_on, gone_on = threading.Event(), threading.Event()

    def late():
        go_on.wait(PATIENCE)
        return "late"

    side = Side("半", late, lambda: gone_on.set(), usage={"completion_tokens": 9})
    battle = Battle(ASK, {}, [side])
    until(lambda: battle.snapshot()[0].text)
    battle.stop()
    before = battle.snapshot()
    go_on.set()
    assert not gone_on.wait(0.2)  # it is not even read to its end
    assert battle.snapshot() == before and before[0].text == "半"


def test_stop_ends_a_blocking_read_at_once():
    sides = [SocketSide(), Side("全"), Side(block, on_close=block)]
    battle = Battle(ASK, {}, sides)
    sides[0].server.send(b"abc")
    until(lambda: [state.text for state in battle.snapshot()] == ["abc", "全", ""])
    until(lambda: battle.snapshot()[1].status == "done")
    battle.stop()
    battle.stop()
    assert battle.ended
    first, second, third = battle.snapshot()
    assert first.status == third.status == first.end_reason == "stopped"
    assert first.message == MESSAGES["stopped"] and first.text == "abc" and first.error
    assert second.status == "done" and second.error is None
    until(lambda: hasattr(sides[0], "gone"))
    until(lambda: [side.closed for side in sides] == [1, 1, 1])


def test_many_battles_at_once():
    def some(i):
        return Side(*"一二三四五六七八九十"), Side(TELLING), Side(f"{i}", lambda: time.sleep(0.02))

    battles = [Battle(ASK, {}, some(i)) for i in range(20)]
    for i, battle in enumerate(battles):
        assert battle.wait(PATIENCE)
        texts = [state.text for state in battle.snapshot()]
        assert texts == ["一二三四五六七八九十", "", str(i)]


# -- text that can be shown ------------------------------------------------------------------------


def shown(pieces, cap=10**6):
    text = DisplayText(cap)
    for piece in pieces:
        text.push(piece)
    text.push("", final=True)
    return text.text


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["a\n\tb\r\nc"], "a\n\tb\nc"),
        (["\x00\x07\x1b[31m红\x7f\x85\x9f\xa0"], "[31m红\xa0"),
        (["\ud83d\ude00"], "😀"),
        (["x\ud83d", "\ude00y"], "x😀y"),
        (["x\ud83d", "y"], "xy"),
        (["\ude00", "\ud83d", "用黏\ufffd"], "用黏"),
        (["\ud83d", "", "\ud83d\ude00"], "😀"),
        (["👩\u200d👧 \u2028 。"], "👩\u200d👧 \u2028 。"),  # no control characters
    ],
)
def test_display_text(pieces, expected):
    assert shown(pieces) == expected


PIECES = st.lists(st.text(st.sampled_from("a黄\n\t\r\x00\x1b\x85😀\ud83d\ude00"), max_size=6))


@given(PIECES, st.integers(0, 12))
def test_the_split_into_chunks_changes_nothing(pieces, cap):
    whole = shown(["".join(pieces)])
    assert shown(pieces) == whole and shown(pieces, cap) == whole[:cap]
    whole.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", whole)


@pytest.mark.parametrize("pieces", [["12345"], ["123", "456"], ["1" * 10_000_000], ["1\x00" * 6]])
def test_a_long_text_is_cut(pieces):
    side = Side(*pieces)
    (state,) = fight(side, max_chars=5)
    n = len("".join(pieces).replace("\0", ""))
    assert len(state.text) == 5 and state.end_reason == ("too long" if n > 5 else "stop")
    assert (state.status, state.error, state.message) == ("done", None, None)
    until(lambda: side.closed == 1)
