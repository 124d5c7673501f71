"""Open pages: what each has under way, for as long as it is used.

    sessions = Sessions()
    session = sessions.get(voter, session_hash)      # made at the first use
    session.battle, session.side, session.talk

A page's hash is chosen by its client, so a session belongs to a voter as well: nobody reaches
another's by guessing its hash. The number of sessions is bounded, in all and for each voter; the
least recently used ends first, and every one ends KEPT_SECONDS after its last use.
"""

import threading
import time
from collections import OrderedDict

KEPT_SECONDS = 3600.0  # a page that lost its connection can still vote
MOST, MOST_OF_A_VOTER = 1000, 8
MOST_TALK_CHARS = 100_000  # of a chat; its oldest turns are dropped


class Session:
    """What an open page has under way."""

    def __init__(self):
        self.bout = None  # its last battle
        self.side = None  # what writes in its chat
        self.talk = []  # the chat so far: {"role", "content"}, oldest first
        self.used = 0.0  # time of the last use

    def remember(self, talk):
        """Keep a conversation as the chat, without the oldest turns where it is too long."""
        talk = list(talk)
        while len(talk) > 1 and sum(len(turn["content"]) for turn in talk) > MOST_TALK_CHARS:
            talk.pop(0)
        self.talk = talk

    def stop(self):
        """End what is being written: nobody reads it."""
        if self.side:
            self.side.close()
        if self.bout:
            self.bout.battle.stop()


class Sessions:
    """Sessions by voter and page hash. For any thread."""

    def __init__(self, most=MOST, most_of_a_voter=MOST_OF_A_VOTER, clock=time.monotonic):
        self._most, self._most_of_a_voter, self._clock = most, most_of_a_voter, clock
        self._lock, self._sessions = threading.Lock(), OrderedDict()  # least recently used first

    def __len__(self):
        return len(self._sessions)

    def get(self, voter, page):
        """The Session of a page, which counts as used now."""
        with self._lock:
            session = self._sessions.setdefault((voter, page), Session())
            session.used = self._clock()
            self._sessions.move_to_end((voter, page))
            ended = [self._sessions.pop(key) for key in self._surplus(voter)]
        for old in ended:
            old.stop()
        return session

    def find(self, voter, page):
        """The Session of a page, None where there is none."""
        with self._lock:
            return self._sessions.get((voter, page))

    def _surplus(self, voter):
        """The keys of the sessions that end now."""
        oldest = self._clock() - KEPT_SECONDS
        ended = [key for key, session in self._sessions.items() if session.used < oldest]
        own = [key for key in self._sessions if key[0] == voter]
        ended += own[: -self._most_of_a_voter]
        ended += list(self._sessions)[: -self._most]
        return dict.fromkeys(ended)
