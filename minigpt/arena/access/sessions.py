"""Sessions: the chat and the last battle of each open page, while the page is used.

    sessions = Sessions()
    session = sessions.get(voter, page)      # created at the first use
    session.arena_battle, session.turns

`page` is the hash that a browser sends for an open page. The client chooses it, so a session
belongs to a voter as well: a guessed hash does not open another voter's session. A new page of a
voter begins with the chat and the battle of the voter's last page: Gradio reloads the page when its
connection was lost. The number of sessions is limited, in total and per voter: the least recently
used one ends first. Every session ends KEPT_SECONDS after its last use.
"""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from minigpt.arena.battles import Battle

KEPT_SECONDS = 3600.0  # after a lost connection the page can still vote
RETURN_SECONDS = 60.0  # after which a page that was left generates no more
MAX_SESSIONS, MAX_SESSIONS_OF_A_VOTER = 1000, 8
MAX_CHAT_CHARS = 100_000  # the oldest turns of a longer chat are dropped


@dataclass(eq=False)
class Turn:
    """A question of the chat and its answer, which may still grow: a Battle with one side."""

    question: str
    battle: Battle

    @property
    def state(self):
        """The SideState of the answer."""
        return self.battle.snapshot()[0]

    @property
    def messages(self):
        """Its question and answer for the model; none if the turn failed or has no answer."""
        state = self.state
        if state.status not in ("done", "stopped") or not state.text.strip():
            return []
        return [message("user", self.question), message("assistant", state.text)]


def message(role, content):
    """A message of a conversation."""
    return {"role": role, "content": content}


class Session:
    """The state of an open page. last: the voter's last Session, whose chat and battle continue."""

    def __init__(self, last=None):
        self.arena_battle = last and last.arena_battle  # the last ArenaBattle
        self.turns = list(last.turns) if last else []  # of the chat, oldest first
        self.tab = last.tab if last else "chat"  # where something was asked last
        self.is_open, self.last_used = True, 0.0

    def add_turn(self, turns, turn):
        """Continue the chat after `turns` with `turn`; drops the oldest if it is too long."""
        turns, room = [*turns, turn], MAX_CHAT_CHARS
        kept = []
        for each in reversed(turns):
            room -= len(each.question) + len(each.state.text)
            if kept and room < 0:
                break
            kept.append(each)
        self.turns = kept[::-1]

    def running(self):
        """The Battles that this page shows and that still run."""
        battles = [turn.battle for turn in self.turns[-1:]]
        battles += [self.arena_battle.battle] if self.arena_battle else []
        return [battle for battle in battles if not battle.ended]

    def stop(self):
        """Stop all generation of this page."""
        for battle in self.running():
            battle.stop()

    def stop_chat(self):
        """Stop the chat's answer."""
        if self.turns:
            self.turns[-1].battle.stop()

    def stop_battle(self):
        """Stop all sides of the battle."""
        if self.arena_battle:
            self.arena_battle.battle.stop()


class Sessions:
    """Sessions by voter and page hash. Thread-safe."""

    def __init__(
        self,
        max_sessions=MAX_SESSIONS,
        max_of_a_voter=MAX_SESSIONS_OF_A_VOTER,
        clock=time.monotonic,
    ):
        self._max_sessions, self._max_of_a_voter = max_sessions, max_of_a_voter
        self._clock = clock
        self._lock, self._sessions = threading.Lock(), OrderedDict()  # least recently used first

    def __len__(self):
        return len(self._sessions)

    def get(self, voter, page, continued=True):
        """The Session of a page, created if there is none; this counts as a use. continued: a new
        one continues the voter's last; False where `voter` may be several people."""
        with self._lock:
            session = self._sessions.get((voter, page))
            if session is None:
                session = self._sessions[voter, page] = Session(
                    self._last_of(voter) if continued else None
                )
            session.is_open, session.last_used = True, self._clock()
            self._sessions.move_to_end((voter, page))
            removed = [self._sessions.pop(key) for key in self._expired(voter)]
        for old in removed:
            self._stop_unseen(voter, old)
        return session

    def leave(self, voter, page):
        """A page was closed, or its connection was lost. If the voter does not come back within
        RETURN_SECONDS, what it was generating is stopped."""
        with self._lock:
            session = self._sessions.get((voter, page))
        if session is None:
            return
        session.is_open = False
        timer = threading.Timer(RETURN_SECONDS, self._stop_unseen, (voter, session))
        timer.daemon = True
        timer.start()

    def _stop_unseen(self, voter, session):
        """Stop what a session generates, unless an open page of the voter shows it."""
        with self._lock:
            open_ones = [s for (v, _), s in self._sessions.items() if v == voter and s.is_open]
        seen = {id(battle) for each in open_ones for battle in each.running()}
        for battle in session.running():
            if id(battle) not in seen:
                battle.stop()

    def _last_of(self, voter):
        oldest = self._clock() - KEPT_SECONDS
        own = [s for (v, _), s in self._sessions.items() if v == voter and s.last_used >= oldest]
        return own[-1] if own else None

    def _expired(self, voter):
        """The keys of the sessions that are too old or too many."""
        oldest = self._clock() - KEPT_SECONDS
        expired = [key for key, session in self._sessions.items() if session.last_used < oldest]
        own = [key for key in self._sessions if key[0] == voter]
        expired += own[: -self._max_of_a_voter]
        expired += list(self._sessions)[: -self._max_sessions]
        return dict.fromkeys(expired)
