"""Voters and sessions: ids cannot be forged, memory is bounded."""

import os
import stat
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.arena.access.sessions import KEPT_SECONDS, MAX_CHAT_CHARS, Session, Sessions, Turn
from minigpt.arena.access.voters import KEY_BYTES, Voters
from minigpt.arena.battles import SideState
from minigpt.common.errors import UserError


def test_a_cookie_of_ours_and_no_other():
    voters = Voters(b"1" * KEY_BYTES)
    cookies = [voters.new_cookie() for _ in range(3)]
    ids = [voters.id_of(cookie) for cookie in cookies]
    assert len(set(ids)) == 3 and None not in ids
    assert Voters(b"2" * KEY_BYTES).id_of(cookies[0]) is None
    other = f"{ids[1]}.{cookies[0].partition('.')[2]}"
    for forged in (None, "", ".", ids[0], f"{ids[0]}.", other, cookies[0] + "0", cookies[0][1:]):
        assert voters.id_of(forged) is None


@given(st.text())
def test_any_text_is_no_cookie(text):
    assert Voters(b"1" * KEY_BYTES).id_of(text) is None


def test_the_key_survives_a_restart_and_is_private(tmp_path):
    ledger = tmp_path / "out" / "arena.sqlite"
    cookie = Voters.beside(ledger).new_cookie()
    assert Voters.beside(ledger).id_of(cookie)
    key = tmp_path / "out" / "arena.sqlite.key"
    if os.name == "posix":
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.write_bytes(b"short")
    with pytest.raises(UserError, match="5 bytes, expected 32"):
        Voters.beside(ledger)
    with pytest.raises(UserError, match="cannot be read or written"):
        Voters.beside(key / "below" / "a file")


class FakeBattle:
    """A battle that runs until it is stopped. text: of its one side."""

    def __init__(self, text=""):
        self.text, self.ended = text, False

    def stop(self):
        self.ended = True

    def snapshot(self):
        return [SideState(self.text, "done", 0.1, 1.0, 2, 2, "stop", None, None)]


def test_sessions_belong_to_their_voter():
    sessions = Sessions()
    mine = sessions.get("v1", "page")
    assert sessions.get("v1", "page") is mine
    assert sessions.get("v2", "page") is not mine


def test_a_new_page_continues_the_last_of_its_voter():
    sessions = Sessions()
    lost = sessions.get("v1", "before")
    lost.arena_battle, lost.turns, lost.tab = object(), [Turn("问", FakeBattle("答"))], "arena"
    found = sessions.get("v1", "after")
    assert (found.arena_battle, found.turns, found.tab) == (lost.arena_battle, lost.turns, "arena")
    assert found.turns is not lost.turns  # each page continues on its own
    for other in (sessions.get("v2", "after"), sessions.get("v1", "third", continued=False)):
        assert (other.arena_battle, other.turns, other.tab) == (None, [], "chat")


def test_sessions_are_bounded():
    sessions = Sessions(max_sessions=10, max_of_a_voter=3)
    running = FakeBattle()
    sessions.get("v1", "0").turns = [Turn("问", running)]
    for i in range(1, 50):
        sessions.get("v1", str(i), continued=False)
    assert len(sessions) == 3 and running.ended
    for i in range(50):
        sessions.get(f"w{i}", "p")
    assert len(sessions) == 10


@pytest.mark.parametrize("comes_back", [True, False])
def test_what_a_lost_page_generates_is_stopped_unless_its_voter_comes_back(monkeypatch, comes_back):
    monkeypatch.setattr("minigpt.arena.access.sessions.RETURN_SECONDS", 0.05)
    sessions, battle = Sessions(), FakeBattle()
    sessions.get("v1", "before").turns = [Turn("问", battle)]
    sessions.leave("v1", "before")
    if comes_back:
        sessions.get("v1", "after")
    until = time.monotonic() + (0.3 if comes_back else 10)
    while not battle.ended and time.monotonic() < until:
        time.sleep(0.01)
    assert battle.ended is not comes_back
    sessions.leave("v3", "unknown")  # nothing happens


def test_a_session_ends_some_time_after_its_last_use():
    now = [0.0]
    sessions = Sessions(clock=lambda: now[0])
    used = sessions.get("v1", "used")
    sessions.get("v2", "idle").tab = "arena"
    for _ in range(3):
        now[0] += KEPT_SECONDS / 2
        assert sessions.get("v1", "used") is used
    assert len(sessions) == 1 and sessions.get("v2", "new").tab == "chat"


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=40))
def test_a_chat_keeps_its_newest_turns(lengths):
    turns = [Turn("长" * n, FakeBattle("答")) for n in lengths]
    session = Session()
    session.add_turn(turns[:-1], turns[-1])
    assert session.turns == turns[len(turns) - len(session.turns) :]
    assert len(session.turns) == 1 or sum(len(t.question) + 1 for t in session.turns) <= 100_000
    assert sum(lengths) + len(lengths) > MAX_CHAT_CHARS or session.turns == turns


def test_a_turn_that_failed_is_no_history():
    answered = Turn("问", FakeBattle("答"))
    assert [m["content"] for m in answered.messages] == ["问", "答"]
    blank = FakeBattle(" \n")
    assert Turn("问", blank).messages == []
    failed = FakeBattle("半")
    failed.snapshot = lambda: [FakeBattle("半").snapshot()[0]._replace(status="failed")]
    assert Turn("问", failed).messages == []
