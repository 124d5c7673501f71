"""A class on the page: thirty pupils in a round, the teacher's tools, and attacks.

The events are called directly, from many threads; one pupil goes the whole way over HTTP.
"""

import base64
import csv
import io
import random
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import pytest
from starlette.testclient import TestClient
from test_page_filter import HOST, HOSTS, Entry, battle_question, call, open_page, shown

from minigpt.arena.access.admin import AdminPassword
from minigpt.arena.access.page_filter import COOKIE, PageFilter
from minigpt.arena.access.rate_limit import RateLimit, VisitorLimits
from minigpt.arena.access.voters import KEY_BYTES, Voters
from minigpt.arena.arena import Arena
from minigpt.arena.classroom.classroom import Classroom
from minigpt.arena.classroom.roster import Roster
from minigpt.arena.classroom.rounds import Rounds
from minigpt.arena.endpoints import Endpoints
from minigpt.arena.health import HealthMonitor
from minigpt.arena.i18n import ENGLISH
from minigpt.arena.store import Ledger
from minigpt.arena.ui.app import make_app
from minigpt.arena.ui.classroom import CHOICES, ClassroomTab
from minigpt.arena.ui.context import PageContext
from minigpt.arena.ui.leaderboard import LeaderboardTab
from minigpt.arena.ui.page import Page
from minigpt.common.errors import UserError
from minigpt.common.presets import PresetPrompt

N_PUPILS, PATIENCE = 30, 30
PROMPTS = ["黄河有多长？", "谁写了《红楼梦》？", "什么是光合作用？", "春节吃什么？"]
SETTINGS = {"temperature": 0.1, "seed": 3}
TEACHER = "teacher's password"


def unlimited():
    """Limits that let a simulated class vote faster than people can."""
    limits = VisitorLimits(10_000)
    limits._voters = {"ask": RateLimit(10_000, 10_000), "vote": RateLimit(10_000, 10_000)}
    return limits


class World:
    """A class of N_PUPILS with its page. entries: the models."""

    def __init__(self, folder, entries, limits=None):
        self.path = folder / "class.csv"
        names = ["=HYPERLINK(1)", *(f"学生 {i:02}" for i in range(1, N_PUPILS))]
        self.codes = {f"AAAA-{i + 3000}": name for i, name in enumerate(names)}
        lines = (f"{name},{code}" for code, name in self.codes.items())
        self.path.write_text("\n".join(["name,code", *lines]), encoding="utf-8")
        self.ledger = Ledger(folder / "arena.sqlite")
        self.voters = Voters(b"k" * KEY_BYTES)
        self.arena = Arena(Endpoints(entries), self.ledger)
        self.roster = Roster(self.path, self.voters, self.ledger)
        self.classroom = Classroom(self.roster, self.arena)
        limits = limits or unlimited()
        self.context = PageContext(self.arena, [], self.voters, limits, classroom=self.classroom)
        self.admin = AdminPassword(TEACHER)
        with gr.Blocks():
            self.tab = ClassroomTab(self.context, self.admin)

    def visitor(self, session="page"):
        """The request of a new browser."""
        return Request(self.voters.new_cookie(), session)

    def pupil(self, code):
        """The request of a browser that has joined."""
        request = self.visitor()
        browser = self.voters.id_of(request.cookies[COOKIE])
        assert self.roster.join(browser, code)
        return request

    def teach(self, event, password=TEACHER, **boxes):
        """The message and the report of a teacher's event."""
        tab = self.tab
        values = {tab.password: password, tab.prompts: "", tab.quota: "", tab.number: ""}
        values |= {getattr(tab, box): text for box, text in boxes.items()}
        updates = event(values, self.visitor())
        return updates[tab.message], updates[tab.report]

    def start_round(self, prompts=PROMPTS):
        message, _ = self.teach(self.tab.start_round, prompts="\n".join(prompts))
        assert ENGLISH["round_started"] in message
        self.wait_for_answers()

    def wait_for_answers(self):
        until = time.monotonic() + PATIENCE
        while (found := self.classroom.rounds.progress()).n_written < len(found.tasks):
            assert time.monotonic() < until
            time.sleep(0.01)

    def judge(self, request, battle_id, choice):
        """What a click on a vote button sends."""
        return self.tab._judge_event(choice)({self.tab.shown: battle_id}, request)


class Request:
    headers, client = {}, None

    def __init__(self, cookie, session):
        self.cookies, self.session_hash = {COOKIE: cookie}, session


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path, [Entry("a"), Entry("b"), Entry("c")])
    yield world
    world.ledger.close()


# -- thirty pupils ---------------------------------------------------------------------------------


def test_thirty_pupils_in_a_round_no_vote_is_lost_or_doubled(world):
    """Each clicks in two browsers, often twice, and sends old clicks again."""
    world.start_round()
    tab, expected = world.tab, {}

    def take_part(code):
        rng, tabs, sent = random.Random(code), [world.pupil(code), world.pupil(code)], []
        while (battle_id := tab.classroom_opened(rng.choice(tabs))[tab.shown]) != 0:
            choice = rng.choice(CHOICES)
            sent.append((battle_id, choice))
            expected[battle_id] = choice
            for _ in range(rng.choice((1, 2))):  # a double click
                world.judge(rng.choice(tabs), battle_id, choice)
            world.judge(rng.choice(tabs), *rng.choice(sent))  # an old click
            world.judge(rng.choice(tabs), battle_id, rng.choice(CHOICES))  # it is final
        return len(sent)

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(take_part, world.codes)) == [len(PROMPTS)] * N_PUPILS
    voted = {battle.id: battle for battle in world.ledger.voted_battles()}
    assert {number: battle.choice for number, battle in voted.items()} == expected
    pairs = Counter((battle.voter, battle.prompt) for battle in voted.values())
    assert len(pairs) == N_PUPILS * len(PROMPTS) == pairs.total()
    assert {battle.voter for battle in voted.values()} == set(world.roster.names())
    progress = world.classroom.rounds.progress()
    assert progress.n_finished(world.roster.names()) == N_PUPILS
    assert set(progress.votes_of_task.values()) == {N_PUPILS}
    assert world.ledger.decided() == []
    world.classroom.rounds.end()
    assert len(world.ledger.decided("blind")) == N_PUPILS * len(PROMPTS)


def test_one_pupil_the_whole_way_over_http(world):
    page = Page(world.context, HealthMonitor(world.arena.endpoints), world.admin, None)
    (code, name) = next(iter(world.codes.items()))
    with TestClient(PageFilter(make_app(page), world.voters, HOSTS), base_url=HOST) as client:
        assert client.get("/").status_code == 200  # sets the cookie
        open_page(client, "page1")
        text = shown(call(client, "battle", battle_question("问", ["a", "b"])))
        assert ENGLISH["join_first"] in text
        assert ENGLISH["wrong_code"] in shown(call(client, "join", {"class-code": "AAAA-9999"}))
        assert f"You vote as {name}." in shown(call(client, "join", {"class-code": code}))
        wrong = {"class-password": "wrong", "class-prompts": "甲"}
        assert ENGLISH["wrong_password"] in shown(call(client, "start_round", wrong))
        assert world.classroom.rounds.current() is None
        prompts = {"class-password": TEACHER, "class-prompts": "甲\n\n乙\n甲"}
        assert ENGLISH["round_started"] in shown(call(client, "start_round", prompts))
        world.wait_for_answers()
        for prompt in "甲乙":
            text = shown(call(client, "classroom_opened"))
            assert prompt in text and "回答" in text
            (battle,) = [b for b in all_battles(world) if b.prompt == prompt]
            call(client, "judge_1", {"class-shown": battle.id})
        assert ENGLISH["round_done"] in shown(call(client, "classroom_opened"))
        assert len(world.ledger.voted_battles()) == 2
        forged = client.cookies[COOKIE][:-1]
        client.cookies.clear()
        client.cookies.set(COOKIE, forged)
        assert ENGLISH["no_cookie"] in shown(call(client, "judge_0", {"class-shown": battle.id}))


def all_battles(world):
    with world.ledger.transaction():
        return world.ledger._records("ORDER BY id", ())


# -- a round ---------------------------------------------------------------------------------------


def test_all_judge_the_same_answers_in_either_order_and_without_names(world):
    world.start_round(["甲"])
    orders = set()
    for code in world.codes:
        request = world.pupil(code)
        updates = world.tab.classroom_opened(request)
        battle = world.ledger.battle(updates[world.tab.shown])
        orders.add(tuple(side.model for side in battle.sides))
        again = world.ledger.battle(world.tab.classroom_opened(request)[world.tab.shown])
        assert again == battle  # the order stays
        names = [side.model for side in battle.sides]
        texts = [updates[card]["value"] for card in world.tab.cards]
        for name, text in zip(names, texts, strict=True):
            assert f"回答 {name}" in text and f">{name}<" not in text
    assert len(orders) == 2  # a class of thirty in one order: 2^-29
    assert len({frozenset(order) for order in orders}) == 1
    assert sum(len(entry.sides) for entry in map(world.arena.endpoints.get, "abc")) == 2


def test_the_pairs_of_models_take_turns(world):
    world.start_round([f"问 {i}" for i in range(9)])
    tasks = world.classroom.rounds.progress().tasks
    assert set(Counter(frozenset(task.names) for task in tasks).values()) == {3}


def test_a_prompt_without_two_answers_is_left_out_and_named(tmp_path):
    world = World(tmp_path, [Entry("a"), Silent("b")])
    world.start_round(["甲", "乙"])
    _, report = world.teach(world.tab.show_report)
    assert report.count(ENGLISH["silent"].format(names="b")) == 2
    updates = world.tab.classroom_opened(world.pupil("AAAA-3000"))
    assert updates[world.tab.shown] == 0 and ENGLISH["round_done"] in updates[world.tab.status]
    world.ledger.close()


class Silent(Entry):
    def side(self):
        side = super().side()
        side.text = " \n"
        return side


def test_a_round_continues_after_a_restart(tmp_path):
    gate = Gate("a")
    world = World(tmp_path, [gate, Entry("b")])
    world.teach(world.tab.start_round, prompts="甲\n乙")
    assert world.classroom.rounds.progress().n_written == 0
    again = Rounds(Arena(Endpoints([Entry("a"), Entry("b")]), world.ledger))  # the gate is shut
    until = time.monotonic() + PATIENCE
    while again.progress().n_written < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    before = again.next_battle("v")
    gate.open.set()  # the first program wakes up: what is judged does not change
    for thread in [each for each in threading.enumerate() if each.name == "round"]:
        thread.join(PATIENCE)
    texts = {side.answer for task in again.progress().tasks for side in task.sides}
    assert before.prompt == "甲" and texts == {"回答 a", "回答 b"}
    world.ledger.close()


class Gate(Entry):
    """A model that answers when its gate opens."""

    def __init__(self, name):
        super().__init__(name)
        self.open = threading.Event()

    def side(self):
        side = super().side()

        def stream(messages, settings):
            assert self.open.wait(PATIENCE)
            yield "迟"

        side.stream = stream
        return side


def test_what_cannot_be_a_round(world):
    for prompts, words in (
        (" \n\n", "0 prompts; expected 1"),
        ("长" * 30_000, "30,000 characters"),
    ):
        message, _ = world.teach(world.tab.start_round, prompts=prompts)
        assert words in message and world.classroom.rounds.current() is None
    lines = "\n".join(map(str, range(500)))
    assert "101 prompts" in world.teach(world.tab.start_round, prompts=lines)[0]
    with pytest.raises(UserError, match="this round has ended"):
        world.classroom.rounds.vote(1, "v", 0)


def test_a_round_shows_its_names_and_counts_after_its_end(world):
    world.start_round(["甲"])
    request = world.pupil("AAAA-3000")
    battle_id = world.tab.classroom_opened(request)[world.tab.shown]
    world.judge(request, battle_id, 0)
    assert world.ledger.battles() == [] == world.ledger.decided()
    other = world.pupil("AAAA-3001")
    late = world.tab.classroom_opened(other)[world.tab.shown]
    message, _ = world.teach(world.tab.end_round)
    assert ENGLISH["round_ended"] in message and len(world.ledger.decided()) == 1
    assert [battle.id for battle in world.ledger.battles()] == [battle_id]
    assert "ended" in world.judge(other, late, 0)[world.tab.status]
    assert len(world.ledger.voted_battles()) == 1


def test_an_open_page_follows_the_round_without_losing_what_it_shows(world):
    tab, request = world.tab, world.pupil("AAAA-3000")
    assert set(tab.poll({tab.shown: 0}, request)) == {tab.progress}
    world.start_round(["甲"])
    updates = tab.poll({tab.shown: 0}, request)
    assert updates[tab.shown] > 0 and "甲" in updates[tab.question]
    assert set(tab.poll({tab.shown: updates[tab.shown]}, request)) == {tab.progress}
    world.classroom.rounds.end()
    assert tab.poll({tab.shown: updates[tab.shown]}, request)[tab.shown] == 0


# -- whose votes -----------------------------------------------------------------------------------


def test_a_vote_on_another_pupils_battle_is_refused(world):
    world.start_round(["甲"])
    one, other = world.pupil("AAAA-3000"), world.pupil("AAAA-3001")
    battle_id = world.tab.classroom_opened(one)[world.tab.shown]
    for request in (other, world.visitor(), Request("forged.cookie", "page")):
        updates = world.judge(request, battle_id, 0)
        assert (
            "not yours" in updates[world.tab.status]
            or "ook" in updates[world.tab.status]
            or (ENGLISH["join_first"] in updates[world.tab.status])
        )
    for wrong in (0, -1, 10**6, None):
        world.judge(one, wrong, 0)
    assert world.ledger.voted_battles() == []


def test_many_votes_a_minute_are_bounded_for_a_pupil_not_for_the_class(tmp_path):
    world = World(tmp_path, [Entry("a"), Entry("b")], VisitorLimits(1))
    world.start_round([f"问 {i}" for i in range(12)])
    for code in list(world.codes)[:3]:  # of one address, which would allow one vote a minute
        request = world.pupil(code)
        for _ in range(12):
            shown_id = world.tab.classroom_opened(request)[world.tab.shown]
            status = world.judge(request, shown_id, 0)[world.tab.status]
        assert "Too many requests" in status
        assert len(world.ledger.voted_battles()) % 5 == 0  # the burst of a voter
    assert len(world.ledger.voted_battles()) == 15
    world.ledger.close()


def test_guessing_codes_is_slowed_down(world):
    request = world.visitor()
    texts = [
        world.tab.join({world.tab.code: f"AAAA-{9000 + i}"}, request)[world.tab.status]
        for i in range(12)
    ]
    assert sum(ENGLISH["wrong_code"] in text for text in texts) == 8
    assert "Too many requests" in texts[-1]
    tries = [world.tab.join({world.tab.code: "x"}, world.visitor()) for _ in range(100)]
    allowed = sum(ENGLISH["wrong_code"] in each[world.tab.status] for each in tries)
    assert allowed <= 60  # of one address, whatever cookies it collects


def test_a_revoked_pupil_cannot_vote_on_what_is_on_the_page(world):
    world.start_round(["甲"])
    request = world.pupil("AAAA-3000")
    battle_id = world.tab.classroom_opened(request)[world.tab.shown]
    text = world.path.read_text(encoding="utf-8").replace("AAAA-3000", "")
    world.path.write_text(text, encoding="utf-8")
    assert ENGLISH["join_first"] in world.judge(request, battle_id, 0)[world.tab.status]
    assert world.ledger.voted_battles() == []
    assert ENGLISH["code_revoked"] in world.teach(world.tab.show_report)[1]


def test_without_a_roster_a_voter_is_a_browser(world):
    context = PageContext(world.arena, [], world.voters, VisitorLimits(10))
    request = world.visitor()
    assert context.voter(request) == world.voters.id_of(request.cookies[COOKIE])
    assert context.free_voter(request) == context.voter(request)
    page = Page(context, HealthMonitor(world.arena.endpoints), world.admin, None)
    labels = [block.id for block in page.build().blocks.values() if isinstance(block, gr.Tab)]
    assert "classroom" not in labels and "arena" in labels


def test_a_ranking_for_each_group_of_presets(world):
    prompts = [PresetPrompt("问", "qa", "qa"), PresetPrompt("黄河是", "plain", "plain")]
    context = PageContext(world.arena, prompts, world.voters, unlimited())
    with gr.Blocks():
        tab = LeaderboardTab(context)
    for prompt, best in (("问", "a"), ("黄河是", "b"), ("其他", "b")):
        arena_battle = world.arena.begin("v", prompt, SETTINGS, names=["a", "b"])
        assert arena_battle.settled.wait(PATIENCE)
        world.arena.vote(arena_battle, "ab".index(best))

    def first(group):
        tables = tab.leaderboard({tab.kind: "all", tab.group: group}, world.visitor())[tab.tables]
        return re.findall(r'<td class="number">1</td><td class="">(\w)</td>', tables)

    assert (first("qa"), first("plain"), first("")) == (["a"], ["b"], ["b"])
    assert ENGLISH["no_votes"] in str(
        tab.leaderboard({tab.kind: "blind", tab.group: "qa"}, world.visitor())
    )


# -- the teacher -----------------------------------------------------------------------------------


def test_every_teachers_event_needs_the_password(world):
    tab = world.tab
    events = [tab.start_round, tab.end_round, tab.show_report, tab.export_votes, tab.set_quota]
    events += [tab.hide_battle, tab.show_battle]
    world.admin._failures.wait = world.admin._strangers.wait = lambda key: 0.0
    for event in events:
        for password in ("", "wrong"):
            message, report = world.teach(event, password, prompts="甲", number="1", quota="1")
            assert ENGLISH["wrong_password"] in message and report == ""
    assert world.classroom.rounds.current() is None and world.classroom.quota is None


def free_vote(world, request, choice=0):
    voter = world.context.free_voter(request)
    arena_battle = world.arena.begin(voter, "问", SETTINGS)
    assert arena_battle.settled.wait(PATIENCE)
    world.arena.vote(arena_battle, choice, world.classroom.quota)
    return arena_battle


def test_the_quota(world):
    request = world.pupil("AAAA-3000")
    assert ENGLISH["quota_set"] in world.teach(world.tab.set_quota, quota="2")[0]
    for _ in range(2):
        free_vote(world, request)
    with pytest.raises(UserError, match="all of your 2 votes"):
        free_vote(world, world.pupil("AAAA-3000"))  # in another browser
    world.start_round(["甲"])
    battle_id = world.tab.classroom_opened(request)[world.tab.shown]
    world.judge(request, battle_id, 1)
    assert len(world.ledger.voted_battles()) == 3  # a round is not limited
    for text in ("many", "-1", "1e3", "９"):
        assert "whole number" in world.teach(world.tab.set_quota, quota=text)[0]
    world.teach(world.tab.set_quota, quota=" ")
    free_vote(world, request)


def test_the_report_says_who_has_voted_and_whose_votes_look_random(world):
    names = {}
    for i, code in enumerate(list(world.codes)[:6]):
        request = world.pupil(code)
        for _ in range(12):
            arena_battle = world.arena.begin(world.context.voter(request), "问", SETTINGS)
            assert arena_battle.settled.wait(PATIENCE)
            best = arena_battle.names.index(min(arena_battle.names))
            world.arena.vote(arena_battle, best if i else 1 - best)  # the first contradicts all
        names[code] = world.codes[code]
    rows = {row.name: row for row in world.classroom.report()}
    assert len(rows) == N_PUPILS and rows["=HYPERLINK(1)"].is_suspicious
    assert not any(rows[f"学生 {i:02}"].is_suspicious for i in range(1, 6))
    assert [rows[name].free_votes for name in names.values()] == [12] * 6
    _, report = world.teach(world.tab.show_report)
    assert report.count(ENGLISH["looks_random"]) == 1 and "学生 29" in report


def test_a_battle_is_hidden_and_shown_again(world):
    record_id = free_vote(world, world.pupil("AAAA-3000")).record_id
    world.teach(world.tab.hide_battle, number=f"#{record_id}")
    assert world.ledger.battles() == []
    world.teach(world.tab.show_battle, number=f"{record_id}")
    assert len(world.ledger.battles()) == 1
    assert "no battle 77" in world.teach(world.tab.hide_battle, number="77")[0]


def test_the_votes_with_names_as_csv(world):
    free_vote(world, world.pupil("AAAA-3000"), 1)
    message, _ = world.teach(world.tab.export_votes)
    (data,) = re.findall(r'href="data:text/csv;base64,([^"]+)"', message)
    text = base64.b64decode(data).decode("utf-8-sig")
    header, row = csv.reader(io.StringIO(text))
    found = dict(zip(header, row, strict=True))
    (battle,) = world.ledger.voted_battles()
    assert found["name"] == "'=HYPERLINK(1)"  # no formula
    assert (found["choice"], found["chosen_model"]) == ("B", battle.sides[1].model)
    assert (found["model_a"], found["prompt"], found["round"]) == (battle.sides[0].model, "问", "")
    assert battle.voter not in text


def test_the_teacher_sees_that_the_file_is_broken(world):
    world.path.write_text("name,code\nx\n", encoding="utf-8")
    world.path.write_text("nothing", encoding="utf-8")
    assert "expected name,code" in world.teach(world.tab.show_report)[1]
