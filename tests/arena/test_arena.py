"""The arena: pairing, records and votes. The sides are scripted."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from minigpt.arena.arena import MAX_PROMPT_CHARS, Arena, ArenaBattle, TooManyBattles
from minigpt.arena.endpoints import Endpoints
from minigpt.arena.ratings import Decided
from minigpt.arena.store import Ledger
from minigpt.common.errors import UserError

PATIENCE = 20  # seconds: what should be over long before, on the busiest machine
SETTINGS = {"temperature": 0.8, "seed": 7}
UNTIL_CLOSED = object()  # among a side's pieces: it waits there


class Entry:
    """An endpoint whose sides write `pieces`; an Exception among them is raised."""

    is_alive, prompt_format = True, None

    def __init__(self, name, *pieces, takes=("temperature", "seed")):
        self.name, self.pieces, self.takes, self.sides = name, pieces, takes, []

    def side(self):
        self.sides.append(Side(self.pieces, self.takes))
        return self.sides[-1]


class Side:
    finish_reason, usage = "stop", {"completion_tokens": 12}

    def __init__(self, pieces, takes):
        self.pieces, self.takes, self.closed = pieces, takes, threading.Event()

    def stream(self, messages, settings):
        self.asked = messages, settings
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            if piece is UNTIL_CLOSED:
                self.closed.wait(PATIENCE)
                return
            yield piece

    def close(self):
        self.closed.set()


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "arena.sqlite")
    yield ledger
    ledger.close()


@pytest.fixture
def make(ledger):
    """make(*entries, **options): an Arena; what still runs at the end is stopped."""
    entries = []

    def make(*given, **options):
        entries.extend(given)
        return Arena(Endpoints(given), ledger, **options)

    yield make
    for side in (side for entry in entries for side in entry.sides):
        side.close()


def three():
    return Entry("a", "甲"), Entry("b", "乙"), Entry("c", "丙")


def ended(arena, arena_battle):
    assert arena_battle.battle.wait(PATIENCE)
    arena.record(arena_battle)
    return arena_battle


def fight(arena, voter="v", **options):
    """A battle that has ended, on record."""
    return ended(arena, arena.begin(voter, "问", SETTINGS, **options))


# -- who meets whom --------------------------------------------------------------------------------


def test_a_blind_battle_chooses_every_pair_in_both_orders(make):
    arena = make(*three())
    met = set()
    for _ in range(150):  # that one of the six is missing: 6 · (5/6)^150 < 1e-11
        arena_battle = arena.begin("v", "问", SETTINGS)
        assert arena_battle.battle.wait(PATIENCE)
        assert arena_battle.kind == "blind" and not arena_battle.names_visible
        met.add(arena_battle.names)
    assert met == {(x, y) for x in "abc" for y in "abc" if x != y}


def test_the_pair_that_has_met_least(make, ledger):
    arena = make(*three())
    for names in (("a", "b"), ("c", "a")):
        fight(arena, names=names)
    assert set(fight(arena, pairing="least").names) == {"b", "c"}
    for n in (2, 3, 4):
        for _ in range(3):
            fight(arena, pairing="least")
        assert set(ledger.pair_counts(list("abc")).values()) == {n}


def test_an_open_battle_shows_the_chosen_names_at_once(make):
    arena = make(*three(), Entry("d", "丁"))
    arena_battle = arena.begin("v", "问", SETTINGS, names=["d", "a", "c", "b"])
    assert (
        arena_battle.kind == "open"
        and arena_battle.names_visible
        and arena_battle.names == ("d", "a", "c", "b")
    )
    ended(arena, arena_battle)
    assert [state.text for state in arena_battle.battle.snapshot()] == ["丁", "甲", "丙", "乙"]


@pytest.mark.parametrize(
    ("prompt", "names", "complaint"),
    [
        (" \n", None, "prompt: empty"),
        ("问", [], "0 chosen; expected 2 to 4"),
        ("问", ["a"], "1 chosen"),
        ("问", ["a", "a"], "2 chosen"),
        ("问", list("abcde"), "5 chosen"),
        ("问", ["a", "nobody"], "no endpoint called nobody"),
    ],
)
def test_invalid_battles_are_refused(make, ledger, prompt, names, complaint):
    arena = make(*(Entry(name, "x") for name in "abcde"))
    with pytest.raises(UserError, match=complaint):
        arena.begin("v", prompt, SETTINGS, names)
    fight(arena)  # nothing of it is left in the way
    assert sum(ledger.pair_counts(list("abcde")).values()) == 1


def test_a_battle_needs_two(make):
    with pytest.raises(UserError, match="needs two models, and there is 1"):
        make(Entry("a", "x")).begin("v", "问", SETTINGS)


def test_every_battle_has_sides_of_its_own(make):
    a, b = Entry("a", "x", UNTIL_CLOSED), Entry("b", "y", UNTIL_CLOSED)
    arena = make(a, b)
    first, second = (arena.begin(voter, "问", SETTINGS, ["a", "b"]) for voter in "vw")
    first.battle.stop()
    assert first.battle.wait(PATIENCE) and a.sides[0].closed.wait(PATIENCE)
    assert not second.battle.ended and not a.sides[1].closed.is_set()
    second.battle.stop()


# -- how many at once ------------------------------------------------------------------------------


def test_a_voter_has_one_battle_at_a_time(make):
    arena = make(Entry("a", UNTIL_CLOSED), Entry("b", "y"))
    first = arena.begin("v", "问", SETTINGS)
    with pytest.raises(TooManyBattles, match="your last battle is still running"):
        arena.begin("v", "问", SETTINGS)
    second = arena.begin("w", "问", SETTINGS)
    first.battle.stop()
    arena.begin("v", "问", SETTINGS).battle.stop()
    second.battle.stop()


def test_the_number_of_battles_is_limited(make):
    arena = make(Entry("a", UNTIL_CLOSED), Entry("b", "y"), max_battles=2)
    battles = [arena.begin(voter, "问", SETTINGS) for voter in "vw"]
    with pytest.raises(TooManyBattles, match="2 battles are running already"):
        arena.begin("x", "问", SETTINGS)
    battles[0].battle.stop()
    arena.begin("x", "问", SETTINGS).battle.stop()
    battles[1].battle.stop()


def test_the_limit_holds_for_concurrent_requests(make):
    arena = make(Entry("a", UNTIL_CLOSED), Entry("b", "y"), max_battles=3)

    def begin(voter):
        try:
            return arena.begin(f"v{voter}", "问", SETTINGS)
        except TooManyBattles:
            return None

    with ThreadPoolExecutor(16) as pool:
        battles = list(filter(None, pool.map(begin, range(16))))
    assert len(battles) == 3
    for arena_battle in battles:
        arena_battle.battle.stop()


# -- the record ------------------------------------------------------------------------------------


def test_the_record_of_a_battle(make, ledger):
    takes = ("temperature", "seed", "top_k")
    arena = make(
        *(Entry("run", "北", "京", takes=takes), Entry("lab", "南京")),
        checkpoints={"run": "c0ffee"},
    )
    settings = {**SETTINGS, "top_k": 5}
    arena_battle = ended(arena, arena.begin("v", "首都？", settings, ["run", "lab"]))
    (found,) = ledger.battles()
    assert arena_battle.record_id == found.id and arena_battle.votable
    assert (found.kind, found.prompt, found.voter) == ("open", "首都？", "v")
    assert found.settings == {"temperature": 0.8}  # the lab takes no top_k, so nobody got it
    assert found.seed == 7 and found.choice is None
    run, lab = found.sides
    assert (run.model, run.endpoint, run.checkpoint) == ("run", "run", "c0ffee")
    assert (run.answer, run.tokens, run.end_reason, run.error) == ("北京", 12, "stop", None)
    assert 0 <= run.first_token_seconds < PATIENCE
    assert (lab.answer, lab.checkpoint) == ("南京", None)


def test_a_battle_is_recorded_once(make, ledger):
    arena = make(*three())
    arena_battle = arena.begin("v", "问", SETTINGS, ["a", "b"])
    assert arena_battle.battle.wait(PATIENCE)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: arena.record(arena_battle), range(8)))
    assert len(ledger.battles()) == 1


def test_a_failed_battle_is_recorded_and_shown_without_a_vote(make, ledger):
    arena = make(Entry("a", "甲"), Entry("b", "乙", OSError("http://lab refused")))
    arena_battle = fight(arena)
    assert arena_battle.failed and arena_battle.names_visible and not arena_battle.votable
    (found,) = ledger.battles()
    failed = found.sides[arena_battle.names.index("b")]
    assert failed.error == "OSError: http://lab refused" and failed.answer == "乙"
    for choice in (0, 1, "tie", "none"):
        with pytest.raises(UserError, match="nothing to vote on"):
            arena.vote(arena_battle, choice)
    assert ledger.decided() == []


def test_a_stopped_battle_cannot_be_voted_on(make):
    arena = make(Entry("a", "甲", UNTIL_CLOSED), Entry("b", "乙"))
    arena_battle = arena.begin("v", "问", SETTINGS)
    arena_battle.battle.stop()
    assert not ended(arena, arena_battle).votable


def test_a_blind_battle_is_secret_at_every_moment_before_the_vote(make, monkeypatch):
    """Another request may look between any two steps: here one does after each."""
    arena, seen = make(*three()), []

    def set_and_look(arena_battle, name, value):
        object.__setattr__(arena_battle, name, value)
        seen.append(arena_battle.names_visible)

    monkeypatch.setattr(ArenaBattle, "__setattr__", set_and_look)
    arena_battle = fight(arena)
    assert len(seen) > 5 and not any(seen)
    arena.vote(arena_battle, 0)
    assert seen[-1] and not any(seen[:-1])


# -- votes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [0, 1, "tie", "none"])
def test_a_vote_counts_and_shows_the_names(make, ledger, choice):
    arena = make(*three())
    arena_battle = fight(arena)
    assert not arena_battle.names_visible and ledger.battles() == []
    arena.vote(arena_battle, choice)
    assert arena_battle.names_visible and arena_battle.choice == choice
    assert ledger.decided("blind") == [Decided(arena_battle.names, choice)]


def test_no_vote_before_the_end(make, ledger):
    arena = make(Entry("a", UNTIL_CLOSED), Entry("b", "y"))
    arena_battle = arena.begin("v", "问", SETTINGS)
    with pytest.raises(UserError, match="still running"):
        arena.vote(arena_battle, 0)
    arena_battle.battle.stop()
    assert arena_battle.choice is None and not arena_battle.names_visible and ledger.decided() == []


def test_a_vote_can_be_changed_until_the_next_battle(make, ledger):
    arena = make(*three())
    first = fight(arena, names=["a", "b"])
    for choice in (0, 1, 1, "tie"):
        arena.vote(first, choice)
    assert ledger.decided() == [Decided(first.names, "tie")]
    fight(arena, voter="somebody else")
    arena.vote(first, 0)
    fight(arena)
    with pytest.raises(UserError, match="until your next battle"):
        arena.vote(first, 1)
    assert first.choice == 0 and ledger.decided() == [Decided(first.names, 0)]


def test_a_long_prompt_is_refused(make, ledger):
    arena = make(*three())
    with pytest.raises(UserError, match=r"20,001 characters; expected at most 20,000"):
        arena.begin("v", "长" * (MAX_PROMPT_CHARS + 1), SETTINGS)
    assert ledger.battles() == []


def test_an_invalid_vote_changes_nothing(make, ledger):
    arena = make(*three())
    arena_battle = fight(arena, names=["a", "b", "c"])
    for choice in (3, -1, "tie", "both", None, True):
        with pytest.raises(UserError, match="expected one of 0, 1, 2, none"):
            arena.vote(arena_battle, choice)
    assert arena_battle.choice is None and ledger.decided() == []


def test_many_voters_at_once_lose_no_vote(make, ledger):
    arena = make(*three(), max_battles=32)

    def session(voter):
        battles = []
        for turn in range(3):
            battles.append(fight(arena, voter=f"v{voter}"))
            arena.vote(battles[-1], turn % 2)
            arena.vote(battles[-1], turn % 2)  # a click that was sent twice
        return battles

    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        battles = [arena_battle for each in pool.map(session, range(8)) for arena_battle in each]
    assert time.monotonic() - began < 3 * PATIENCE
    expected = sorted((arena_battle.names, arena_battle.choice) for arena_battle in battles)
    assert sorted(map(tuple, ledger.decided())) == expected and len(expected) == 24
