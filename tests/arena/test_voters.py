"""Voters and sessions: ids cannot be forged, memory is bounded."""

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.arena.access.sessions import KEPT_SECONDS, MAX_CHAT_CHARS, Session, Sessions
from minigpt.arena.access.voters import KEY_BYTES, Voters
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


class Closed:
    closed = False

    def close(self):
        self.closed = True


def test_sessions_belong_to_their_voter():
    sessions = Sessions()
    mine = sessions.get("v1", "page")
    assert sessions.get("v1", "page") is mine is sessions.find("v1", "page")
    assert sessions.get("v2", "page") is not mine and sessions.find("v3", "page") is None


def test_sessions_are_bounded():
    sessions = Sessions(max_sessions=10, max_of_a_voter=3)
    first = sessions.get("v1", "0")
    first.chat_stream = Closed()
    for i in range(1, 50):
        sessions.get("v1", str(i))
    assert len(sessions) == 3 and first.chat_stream.closed
    for i in range(50):
        sessions.get(f"w{i}", "p")
    assert len(sessions) == 10 and sessions.find("w49", "p") and not sessions.find("v1", "49")


def test_a_session_ends_some_time_after_its_last_use():
    now = [0.0]
    sessions = Sessions(clock=lambda: now[0])
    used, idle = sessions.get("v1", "used"), sessions.get("v1", "idle")
    for _ in range(3):
        now[0] += KEPT_SECONDS / 2
        assert sessions.get("v1", "used") is used
    assert sessions.find("v1", "idle") is None and idle is not None


@given(st.lists(st.integers(0, 20_000), max_size=40))
def test_a_chat_keeps_its_newest_turns(lengths):
    talk = [{"role": "user", "content": "长" * n} for n in lengths]
    session = Session()
    session.remember(talk)
    assert session.messages == talk[len(talk) - len(session.messages) :]
    assert sum(len(turn["content"]) for turn in session.messages) <= MAX_CHAT_CHARS
