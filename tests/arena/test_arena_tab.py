"""The Arena tab without a browser: its events are called directly, on scripted endpoints."""

import gradio as gr
import pytest
from test_classroom import unlimited
from test_page_filter import Entry

from minigpt.arena.access.page_filter import COOKIE
from minigpt.arena.access.voters import KEY_BYTES, Voters
from minigpt.arena.arena import Arena
from minigpt.arena.battles import SettingRefused
from minigpt.arena.endpoints import Endpoints
from minigpt.arena.i18n import ENGLISH
from minigpt.arena.store import BattleRecord, Ledger
from minigpt.arena.ui.arena import ArenaTab
from minigpt.arena.ui.context import PageContext


class Strict(Entry):
    """An endpoint whose server refuses top_k."""

    def side(self):
        side = super().side()
        side.takes, side.stream, side.again = {"temperature", "top_k"}, self.stream, self.side
        return side

    def stream(self, messages, settings):
        if "top_k" in settings:
            raise SettingRefused("top_k")
        yield "严"


class Page:
    """The tab, and a visitor who sends what a browser would."""

    headers, client, session_hash = {}, None, "page"

    def __init__(self, folder, entries):
        voters = Voters(b"k" * KEY_BYTES)
        self.ledger = Ledger(folder / "arena.sqlite")
        self.cookies = {COOKIE: voters.new_cookie()}
        self.voter = voters.id_of(self.cookies[COOKIE])
        context = PageContext(Arena(Endpoints(entries), self.ledger), [], voters, unlimited())
        with gr.Blocks():
            self.tab = ArenaTab(context)

    def battle(self, question):
        """The last updates of a battle between all models."""
        tab = self.tab
        values = {each: each.value for each in tab.sampling.components}
        values |= {tab.question: question, tab.mode: "blind", tab.pairing: "random"}
        *_, last = tab.battle({**values, tab.models: []}, self)
        return last

    def vote(self, shown, choice):
        """The status after a click on a vote button."""
        return self.tab._vote_event(choice)({self.tab.shown: shown}, self)[self.tab.status]

    def choices(self):
        return {each.id: each.choice for each in self.ledger.voted_battles()}


@pytest.fixture
def page(tmp_path):
    page = Page(tmp_path, [Entry("a"), Entry("b")])
    yield page
    page.ledger.close()


def test_a_vote_counts_for_the_battle_that_the_page_showed(page):
    first = page.battle("一？")[page.tab.shown]
    assert ENGLISH["voted"] in page.vote(first, 0)
    second = page.battle("二？")[page.tab.shown]
    assert second > first
    page.vote(first, 0)  # the request is replayed
    assert page.choices() == {first: 0}
    assert "final" in page.vote(first, 1) and page.choices() == {first: 0}
    third = page.battle("三？")[page.tab.shown]
    assert ENGLISH["voted_earlier"] in page.vote(second, "tie")  # a click that arrives late
    assert page.choices() == {first: 0, second: "tie"}
    assert ENGLISH["voted"] in page.vote(third, 1)


def test_a_vote_on_no_battle_of_the_visitor(page):
    page.battle("一？")
    with page.ledger.transaction("IMMEDIATE"):
        page.ledger.execute("INSERT INTO round (id, time, ended) VALUES (1, 0, 1)")
        page.ledger.execute("INSERT INTO task VALUES (1, 0, '甲', '[]', '{}', NULL)")
    side = page.ledger.battle(1).sides[0]
    others = BattleRecord("blind", "甲", {}, 1, "another", (side, side))
    in_round = BattleRecord("blind", "甲", {}, 1, page.voter, (side, side), round=1, task=0)
    ids = [page.ledger.add_battle(each) for each in (others, in_round)]
    for wrong in (*ids, 0, None, -1, 1.5e300, float("nan"), float("inf"), "1"):
        assert "not yours" in page.vote(wrong, 0)
    assert page.choices() == {}


def test_a_setting_that_a_model_refuses_is_named(tmp_path):
    page = Page(tmp_path, [Strict("a"), Strict("b")])
    status = page.battle("一？")[page.tab.status]
    used_by_none = ENGLISH["unsupported_settings"].format(names="")
    assert used_by_none in status and status.index("top_k") > status.index(used_by_none)
    assert "top_k" not in page.ledger.battle(1).settings
    page.ledger.close()
