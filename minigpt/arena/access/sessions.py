"""Sessions: the chat and the last battle of each open page, while the page is used.

    sessions = Sessions()
    session = sessions.get(voter, page)      # created at the first use
    session.arena_battle, session.chat_stream, session.messages

`page` is the hash that a browser sends for an open page. The client chooses it, so a session
belongs to a voter as well: a guessed hash does not open another voter's session. The number of
sessions is limited, in total and per voter: the least recently used one ends first. Every session
ends KEPT_SECONDS after its last use.
"""

import threading
import time
from collections import OrderedDict

KEPT_SECONDS = 3600.0  # after a lost connection the page can still vote
MAX_SESSIONS, MAX_SESSIONS_OF_A_VOTER = 1000, 8
MAX_CHAT_CHARS = 100_000  # the oldest messages of a longer chat are dropped


class Session:
    """The state of an open page."""

    def __init__(self):
        self.arena_battle = None  # the last ArenaBattle
        self.chat_stream = None  # the endpoint's side that generates the chat's answer
        self.messages = []  # the chat so far: {"role", "content"}, oldest first
        self.last_used = 0.0

    def remember(self, messages):
        """Store a conversation as the chat; drops the oldest messages if it is too long."""
        messages = list(messages)
        while len(messages) > 1 and sum(len(m["content"]) for m in messages) > MAX_CHAT_CHARS:
            messages.pop(0)
        self.messages = messages

    def stop(self):
        """Stop all generation of this page."""
        self.stop_chat()
        self.stop_battle()

    def stop_chat(self):
        """Stop the chat's answer."""
        if self.chat_stream:
            self.chat_stream.close()

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

    def get(self, voter, page):
        """The Session of a page, created if there is none; this counts as a use."""
        with self._lock:
            session = self._sessions.setdefault((voter, page), Session())
            session.last_used = self._clock()
            self._sessions.move_to_end((voter, page))
            removed = [self._sessions.pop(key) for key in self._expired(voter)]
        for old in removed:
            old.stop()
        return session

    def find(self, voter, page):
        """The Session of a page, or None."""
        with self._lock:
            return self._sessions.get((voter, page))

    def _expired(self, voter):
        """The keys of the sessions that are too old or too many."""
        oldest = self._clock() - KEPT_SECONDS
        expired = [key for key, session in self._sessions.items() if session.last_used < oldest]
        own = [key for key in self._sessions if key[0] == voter]
        expired += own[: -self._max_of_a_voter]
        expired += list(self._sessions)[: -self._max_sessions]
        return dict.fromkeys(expired)
