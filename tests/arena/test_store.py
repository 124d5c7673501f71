"""The ledger: what it keeps, whose votes it takes, what it finds, and that nothing is lost."""

import json
import random
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt.arena.battles import choose_pair
from minigpt.arena.database import VERSION
from minigpt.arena.exports import jsonl, markdown, preference_pairs
from minigpt.arena.ratings import Decided, ratings
from minigpt.arena.store import (
    BattleRecord,
    Ledger,
    SideRecord,
)
from minigpt.common.errors import UserError


def side(model, answer="一个回答。", error=None, end_reason="stop"):
    return SideRecord(
        model, f"{model}'s server", "c0ffee", answer, 0.25, 31.5, 40, end_reason, error
    )


def battle(*sides, prompt="黄河发源于哪里？", kind="open", voter="v1", settings=None, seed=7):
    sides = sides or (side("a"), side("b"))
    settings = {"temperature": 0.8, "stop": ["\n"]} if settings is None else settings
    return BattleRecord(kind, prompt, settings, seed, voter, tuple(sides))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "arena" / "battles.sqlite"


@pytest.fixture
def ledger(path):
    ledger = Ledger(path)
    yield ledger
    ledger.close()


# -- keeping ---------------------------------------------------------------------------------------


def test_a_saved_battle_is_read_back(ledger, path):
    saved = battle(side("a", "甲"), side("b", "乙", "timed out", "deadline"), side("a", ""))
    number = ledger.add_battle(saved)
    other = Ledger(path)  # another connection: the vote is in the file
    (found,) = other.battles()
    other.close()
    assert found.id == number and found.time > 1.7e9 and found.choice is None
    assert (found.kind, found.prompt, found.settings) == (saved.kind, saved.prompt, saved.settings)
    assert (found.seed, found.voter, found.sides) == (saved.seed, saved.voter, saved.sides)


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(prompt=TEXT, answers=st.lists(TEXT, min_size=2, max_size=4))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_read_back_and_found(ledger, prompt, answers):
    number = ledger.add_battle(
        battle(*(side(f"m{i}", a) for i, a in enumerate(answers)), prompt=prompt)
    )
    for text in (prompt, *answers):
        assert number in {found.id for found in ledger.battles(text=text)}
    found = ledger.battles(limit=1)[0]
    assert found.prompt == prompt and [each.answer for each in found.sides] == answers


def test_half_a_character_and_nul_are_replaced(ledger):
    ledger.add_battle(
        battle(side("a", "x\ud83dy"), side("b", "p\0q"), prompt="\udc00 \ud83d\ude00")
    )
    (found,) = ledger.battles(text="\udc00")
    assert found.prompt == "\ufffd 😀"
    assert [each.answer for each in found.sides] == ["x\ufffdy", "p\ufffdq"]


def test_the_file_is_synchronous_and_in_wal_mode(ledger, path):
    assert ledger.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert ledger.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
    with sqlite3.connect(path) as other:
        assert other.execute("PRAGMA user_version").fetchone()[0] == VERSION
    other.close()


def test_other_files_are_refused_and_left_alone(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("these are my notes, and no database at all\n" * 20)
    with pytest.raises(UserError, match=r"notes\.txt"):
        Ledger(text)
    assert text.read_text().startswith("these")
    for name, statement in (
        ("new", "PRAGMA user_version = 99"),
        ("shop", "CREATE TABLE goods (x)"),
    ):
        with sqlite3.connect(tmp_path / name) as other:
            other.execute(statement)
        other.close()
    with pytest.raises(UserError, match="version 99"):
        Ledger(tmp_path / "new")
    with pytest.raises(UserError, match="no ledger"):
        Ledger(tmp_path / "shop")
    with pytest.raises(UserError, match="cannot be read or written"):
        Ledger(tmp_path)


def test_a_battle_is_saved_whole_or_not_at_all(ledger):
    with pytest.raises(UserError):
        ledger.add_battle(battle(side("a"), side(None)))
    assert ledger.battles() == [] and ledger.pair_counts(["a", "b"]) == {frozenset("ab"): 0}
    assert ledger.add_battle(battle()) and len(ledger.battles()) == 1


# -- voting ----------------------------------------------------------------------------------------


def test_a_vote_and_its_change(ledger):
    number = ledger.add_battle(battle(kind="open"))
    assert ledger.decided() == []
    for choice in (0, 1, "tie", "none", "none"):
        voted = ledger.vote(number, "v1", choice)
        assert voted.choice == choice and [each.model for each in voted.sides] == ["a", "b"]
        assert ledger.decided() == [Decided(("a", "b"), choice)]
    ledger.add_battle(battle(voter="v2"))  # someone else's
    ledger.vote(number, "v1", 1)
    ledger.add_battle(battle())
    with pytest.raises(UserError, match="until your next battle"):
        ledger.vote(number, "v1", 0)
    ledger.vote(number, "v1", 1)  # the same again: a click that was sent twice
    assert ledger.decided("open") == [Decided(("a", "b"), 1)] and ledger.decided("blind") == []


def test_a_blind_vote_is_final(ledger):
    """It shows the names: a vote that came after them would not be blind."""
    number = ledger.add_battle(battle(kind="blind"))
    ledger.vote(number, "v1", 0)
    ledger.vote(number, "v1", 0)  # a click that was sent twice
    for choice in (1, "tie", "none"):
        with pytest.raises(UserError, match="final"):
            ledger.vote(number, "v1", choice)
    assert ledger.decided("blind") == [Decided(("a", "b"), 0)]


def test_the_first_vote_may_come_late(ledger):
    first, _ = ledger.add_battle(battle()), ledger.add_battle(battle())
    assert ledger.vote(first, "v1", 0).choice == 0


def test_votes_that_are_refused(ledger):
    number = ledger.add_battle(battle())
    failed = ledger.add_battle(battle(side("a"), side("b", "half", "timed out")))
    three = ledger.add_battle(battle(*map(side, "abc")))
    for wrong in ((number, "v2", 0), (number + 99, "v1", 0)):
        with pytest.raises(UserError, match="not yours"):
            ledger.vote(*wrong)
    with pytest.raises(UserError, match="nothing to vote on"):
        ledger.vote(failed, "v1", 0)
    for choice in (2, -1, True, None, "0", "best", 0.0):
        with pytest.raises(UserError, match="expected one of 0, 1, tie, none"):
            ledger.vote(number, "v1", choice)
    with pytest.raises(UserError, match="expected one of 0, 1, 2, none"):
        ledger.vote(three, "v1", "tie")  # of three, only the best or none
    assert ledger.decided() == []
    assert ledger.vote(three, "v1", 2).choice == 2


# -- finding ---------------------------------------------------------------------------------------


def ids(battles):
    return [battle.id for battle in battles]


def test_search(ledger):
    first = ledger.add_battle(battle(prompt="长江有多长？100%_对吗"))
    second = ledger.add_battle(battle(side("b", "黄河 YELLOW River"), side("c"), kind="blind"))
    third = ledger.add_battle(battle(side("a", "1000 对 100a_"), side("c")))
    ledger.vote(second, "v1", 0)
    assert ids(ledger.battles()) == [third, second, first]
    assert ids(ledger.battles(text="长江")) == [first]
    assert ids(ledger.battles(text="黄河")) == [third, second]  # a prompt, and an answer
    assert ids(ledger.battles(text="%")) == ids(ledger.battles(text="0%_")) == [first]
    assert ids(ledger.battles(text="_")) == [third, first]
    assert ids(ledger.battles(text="yellow RIVER")) == [second]
    assert ledger.battles(text="' OR 1=1 --") == [] == ledger.battles(text="长" * 60_000)
    assert ids(ledger.battles(model="c")) == [third, second] and ledger.battles(model="%") == []
    assert ids(ledger.battles(kind="blind")) == [second]
    assert ids(ledger.battles(text="对", model="c", kind="open")) == [third]
    assert ids(ledger.battles(limit=2)) == [third, second]
    assert (
        ids(ledger.battles(limit=2, before=second)) == [first] == ids(ledger.battles(before=second))
    )
    for at_once in (1, 2, 3, 100):
        assert ids(ledger.each_battle(at_once)) == [third, second, first]


def test_a_blind_battle_is_not_listed_before_its_vote(ledger):
    waiting = ledger.add_battle(battle(kind="blind"))
    failed = ledger.add_battle(battle(side("a"), side("b", "", "refused"), kind="blind"))
    assert ids(ledger.battles()) == ids(ledger.battles(model="a")) == [failed]
    ledger.vote(waiting, "v1", "none")
    assert ids(ledger.battles()) == [failed, waiting]


def test_pair_counts_and_the_pair_that_has_met_least(ledger):
    for sides in ("ab", "ba", "abc", "aab", "cc"):
        ledger.add_battle(battle(*map(side, sides)))
    ledger.add_battle(battle(side("d"), side("a", "", "refused")))
    counts = ledger.pair_counts(["a", "b", "c", "d"])
    found = {"".join(sorted(pair)): n for pair, n in counts.items()}
    assert found == dict(ab=4, ac=1, ad=1, bc=1, bd=0, cd=0)
    rng = random.Random(0)
    pairs = {frozenset(choose_pair("abcd", counts, rng, "least")) for _ in range(50)}
    assert pairs == {frozenset("bd"), frozenset("cd")}


def test_votes_become_ratings(ledger):
    for voter in range(9):
        number = ledger.add_battle(battle(voter=str(voter), kind="blind"))
        ledger.vote(number, str(voter), 1)
    assert [row.name for row in ratings(ledger.decided("blind"), 0)] == ["b", "a"]


# -- exports ---------------------------------------------------------------------------------------


def test_jsonl_has_all_but_the_voter(ledger):
    number = ledger.add_battle(
        battle(side("a", "甲\u2028乙\n丙"), side("b", "", "http://10.0.0.7"))
    )
    (line,) = jsonl(ledger.battles())
    assert line.count("\n") == 1 and "甲" in line and "v1" not in line and "10.0.0.7" not in line
    record = json.loads(line)
    assert record["id"] == number and record["choice"] is None and record["seed"] == 7
    assert record["sides"][0]["answer"] == "甲\u2028乙\n丙"
    assert record["sides"][1]["checkpoint"] == "c0ffee"


def test_preference_pairs(ledger):
    rounds = [
        ([side("a", "好"), side("b", "坏")], 0),
        ([side("a", "好"), side("b", "坏")], "tie"),
        ([side("a", "好"), side("b", "坏")], "none"),
        ([side("a", "一样"), side("b", "一样")], 1),
        ([side("a", "甲"), side("b", "乙"), side("c", "丙"), side("d", "乙")], 1),
        ([side("a", "没有"), side("b", "投票")], None),
    ]
    for sides, choice in rounds:
        number = ledger.add_battle(battle(*sides, prompt="问"))
        if choice is not None:
            ledger.vote(number, "v1", choice)
    assert list(preference_pairs(ledger.battles())) == [
        dict(prompt="问", chosen="乙", rejected="甲"),
        dict(prompt="问", chosen="乙", rejected="丙"),
        dict(prompt="问", chosen="好", rejected="坏"),
    ]


def test_markdown_interprets_no_text(ledger):
    evil = "```\n<script>alert(1)</script>\n````\n# 标题"
    number = ledger.add_battle(battle(side("a", evil), side("*b*\n<i>", "乙"), prompt="黄河"))
    ledger.vote(number, "v1", 0)
    text = "".join(markdown(ledger.battles()))
    assert f"`````text\n{evil}\n`````\n" in text and "```text\n黄河\n```\n" in text
    assert "### A: a – the best" in text and "### B: \\*b\\* \\<i\\>\n" in text
    assert "temperature 0.8" in text and "seed 7" in text and "v1" not in text
    inside = markdown_blocks(text)
    assert inside == ["黄河", evil, "乙"]


def markdown_blocks(text):
    """The contents of fenced blocks, read line by line as CommonMark says."""
    found, fence = [], None
    for line in text.split("\n"):
        ticks = len(line) - len(line.lstrip("`"))
        if fence is None and ticks >= 3:
            fence, lines = ticks, []
        elif fence is not None and ticks >= fence and not line.strip("`"):
            found.append("\n".join(lines))
            fence = None
        elif fence is not None:
            lines.append(line)
    assert fence is None
    return found


# -- many at once, and sudden ends -----------------------------------------------------------------


def test_many_threads_of_two_connections(ledger, path):
    other = Ledger(path)

    def take_part(voter):
        numbers = []
        for i in range(15):
            ledger = ledgers[i % 2]
            numbers.append(ledger.add_battle(battle(prompt=f"{voter} {i}", voter=voter)))
            ledger.vote(numbers[-1], voter, i % 2)
            assert ledger.battles(text=f"{voter} {i}")[0].choice == i % 2
        return numbers

    ledgers = (ledger, other)
    with ThreadPoolExecutor(12) as pool:
        numbers = list(pool.map(take_part, map("voter{:02}".format, range(12))))
    flat = [number for each in numbers for number in each]
    assert len(set(flat)) == len(flat) == len(ledger.decided()) == 180
    assert ledger.pair_counts("ab") == {frozenset("ab"): 180}
    number = ledger.add_battle(battle())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: ledgers[i % 2].vote(number, "v1", i % 3 % 2), range(40)))
    assert len(ledger.decided()) == 181  # one vote, however often it was sent
    other.close()


# A process that adds battles for ever, and says each id and vote once it is saved.
WRITER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from minigpt.arena.store import BattleRecord, Ledger, SideRecord
ledger, voter = Ledger(sys.argv[1]), sys.argv[2]
sides = tuple(SideRecord(name, "x", None, "答" * 3000, None, None, None, "stop") for name in "ab")
while True:
    number = ledger.add_battle(BattleRecord("open", voter, {{}}, None, voter, sides))
    print(number, "saved", flush=True)
    ledger.vote(number, voter, number % 2)
    print(number, "voted", flush=True)
"""


def start_writer(path, voter):
    command = [sys.executable, "-c", WRITER, str(path), voter]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_reported_votes_survive_a_kill(path):
    """Two processes write one new file at once, and are killed in the midst of it."""
    writers = {voter: start_writer(path, voter) for voter in ("one", "two")}
    lines = {
        voter: [writer.stdout.readline() for _ in range(60)] for voter, writer in writers.items()
    }
    for voter, writer in writers.items():
        writer.kill()
        lines[voter] += writer.stdout.readlines()
        assert writer.wait(30) != 0
    ledger = Ledger(path)
    found = {battle.id: battle for battle in ledger.battles()}
    for voter in writers:
        reported = [line.split() for line in lines[voter] if line.endswith("\n")]
        assert len(reported) >= 60
        for number, what in reported:
            record = found[int(number)]
            assert record.prompt == record.voter == voter and len(record.sides) == 2
            assert what == "saved" or record.choice == int(number) % 2
    assert len(found) <= sum(map(len, lines.values())) // 2 + 4
    assert ledger.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    ledger.close()


def test_many_open_a_new_file_at_once(tmp_path):
    def open_it(path):
        ledger = Ledger(path)
        found = ledger.add_battle(battle())
        ledger.close()
        return found

    for i in range(10):  # once in twenty times, something was in the way
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(open_it, [tmp_path / f"{i}.sqlite"] * 8))
        assert sorted(found) == list(range(1, 9))


# -- a class ---------------------------------------------------------------------------------------


def end_rounds(ledger):
    ledger.execute("UPDATE round SET ended = 2.0")


def test_a_hidden_battle_is_shown_exported_and_counted_nowhere(ledger):
    kept, hidden = ledger.add_battle(battle()), ledger.add_battle(battle(prompt="秘密"))
    ledger.vote(hidden, "v1", 0)
    ledger.hide(hidden)
    assert ids(ledger.battles()) == ids(ledger.each_battle()) == [kept]
    assert ledger.battles(text="秘密") == [] and ledger.decided() == ledger.votes() == []
    assert ids(ledger.voted_battles()) == [hidden] and ledger.battle(hidden).hidden
    ledger.hide(hidden, False)
    assert ids(ledger.battles()) == [hidden, kept] and len(ledger.decided()) == 1
    with pytest.raises(UserError, match="no battle 99"):
        ledger.hide(99)


def test_a_voter_has_one_battle_for_each_prompt_of_a_round(ledger):
    ledger.execute("INSERT INTO round (id, time) VALUES (1, 1.0)")
    record = replace(battle(kind="blind"), round=1, task=0)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: ledger.add_battle(record), range(24)))
    assert len(found) == 1
    other = ledger.add_battle(replace(record, voter="v2"))
    ledger.vote(found.pop(), "v1", 0)
    assert ledger.battles() == [] == ledger.decided()  # before the round ends
    assert [vote.voter for vote in ledger.votes(running=True)] == ["v1"]
    end_rounds(ledger)
    assert len(ledger.battles()) == len(ledger.decided()) == 1
    ledger.vote(other, "v2", 1)
    assert len(ledger.decided()) == 2


def test_a_quota_limits_votes_outside_of_rounds(ledger):
    ledger.execute("INSERT INTO round (id, time) VALUES (1, 1.0)")
    numbers = [ledger.add_battle(battle()) for _ in range(3)]
    in_round = ledger.add_battle(replace(battle(kind="blind"), round=1, task=0))
    with ThreadPoolExecutor(3) as pool:  # three tabs at once

        def vote(number):
            try:
                return ledger.vote(number, "v1", 0, quota=2)
            except UserError as error:
                assert "all of your 2 votes" in str(error)

        assert len(list(filter(None, pool.map(vote, numbers)))) == 2
    ledger.vote(in_round, "v1", 0, quota=2)
    assert ledger.n_free_votes("v1") == 2 and ledger.n_free_votes("v2") == 0


def test_votes_have_a_voter_and_lengths_of_the_sides_with_an_answer(ledger):
    sides = [side("a", "三个字"), side("b", " "), side("c", "五个字😀的")]
    number = ledger.add_battle(battle(*sides, prompt="甲"))
    ledger.vote(number, "v1", 2)
    assert ledger.votes() == [("v1", Decided(("a", "c"), 1), (3, 5))]
    assert (
        ledger.votes(prompts=["甲", "乙"]) == ledger.votes() and ledger.votes(prompts=["乙"]) == []
    )
    assert ledger.votes(prompts=[]) == []
