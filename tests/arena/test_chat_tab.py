"""The Chat tab without a browser: its events are called directly, on a scripted endpoint."""

import threading

import gradio as gr
import pytest
from test_page_filter import Entry

from minigpt.arena.access.rate_limit import VisitorLimits
from minigpt.arena.access.voters import Voters
from minigpt.arena.arena import Arena
from minigpt.arena.endpoints import Endpoints
from minigpt.arena.ui.chat import ChatTab
from minigpt.arena.ui.context import PageContext


class Request:
    headers, cookies, client, session_hash = {}, {}, None, "page"


class Writer(Entry):
    """An endpoint whose sides write what `answers` has for a question, each piece once allowed."""

    answers = {"一问": "一答", "二问": "二答"}

    def __init__(self, name):
        super().__init__(name)
        self.allowed = threading.Semaphore(0)

    def side(self):
        side = super().side()
        side.stream = self.stream
        return side

    def stream(self, messages, settings):
        self.asked = messages
        for piece in self.answers.get(messages[-1]["content"], ["坏", OSError("down")]):
            assert self.allowed.acquire(timeout=30)
            if isinstance(piece, Exception):
                raise piece
            yield piece


@pytest.fixture
def writer():
    return Writer("a")


@pytest.fixture
def tab(writer):
    arena = Arena(Endpoints([writer]), None)
    context = PageContext(arena, [], Voters(b"k"), VisitorLimits(100))
    with gr.Blocks():
        return ChatTab(context)


def send(tab, question):
    """The updates of a question, one after the other."""
    values = {each: each.value for each in tab.sampling.components}
    return tab.send({**values, tab.model: "a", tab.question: question}, Request())


def texts(tab, update):
    return [message["content"] for message in update[tab.chatbot]]


def until(updates, tab, expected):
    """Read updates up to the one that shows the texts `expected`."""
    for update in updates:
        if texts(tab, update) == expected:
            return update
    raise AssertionError(f"never shown: {expected}")


def test_an_answer_is_streamed_and_stored(tab, writer):
    updates = send(tab, "一问")
    first = next(updates)
    assert texts(tab, first) == ["一问", "…"] and first[tab.question] == ""
    writer.allowed.release()
    until(updates, tab, ["一问", "一"])
    writer.allowed.release()
    last = until(updates, tab, ["一问", "一答"])
    assert tab.question not in last  # what is being typed stays
    assert list(updates) == [] or texts(tab, last) == ["一问", "一答"]
    writer.allowed.release(10)
    list(send(tab, "二问"))
    assert [m["content"] for m in writer.asked] == ["一问", "一答", "二问"]


def test_texts_are_escaped(tab):
    assert texts(tab, next(send(tab, "问<b>")))[0] == "问&lt;b&gt;"


def test_a_failed_turn_is_shown_and_is_no_history(tab, writer):
    writer.allowed.release(10)
    *_, last = send(tab, "坏问")
    assert texts(tab, last)[0] == "坏问" and texts(tab, last)[1].startswith("坏\n")
    assert "down" in last[tab.status]
    *_, last = send(tab, "一问")
    assert [m["content"] for m in writer.asked] == ["一问"]
    assert texts(tab, last)[0] == "坏问" and texts(tab, last)[-1] == "一答"


def test_a_cleared_answer_does_not_come_back(tab, writer):
    updates = send(tab, "一问")
    next(updates)
    writer.allowed.release()
    until(updates, tab, ["一问", "一"])
    assert texts(tab, tab.clear_chat(Request())) == []
    rest = list(updates)  # the last one undoes an update that was on its way
    assert rest and all(texts(tab, update) == [] for update in rest)
    assert tab.context.session(Request()).turns == []
    writer.allowed.release(10)


def test_the_next_question_replaces_an_answer(tab, writer):
    old = send(tab, "一问")
    next(old)
    writer.allowed.release(10)
    new = list(send(tab, "二问"))
    assert list(old) == []
    assert texts(tab, new[-1])[-2:] == ["二问", "二答"]


def test_a_page_that_was_loaded_again_shows_the_answer_to_its_end(tab, writer):
    updates = send(tab, "一问")
    next(updates)
    updates.close()  # the connection was lost: the answer continues
    writer.allowed.release(10)
    *_, last = tab.restore(Request())
    assert texts(tab, last) == ["一问", "一答"]


def test_an_edited_question_replaces_what_follows(tab, writer):
    writer.allowed.release(10)
    list(send(tab, "一问"))
    list(send(tab, "二问"))
    values = {**{each: each.value for each in tab.sampling.components}, tab.model: "a"}

    class Edited:
        index, value = 2, "一问"  # the second question

    *_, last = tab.edit(values, Request(), Edited())
    assert texts(tab, last) == ["一问", "一答", "一问", "一答"]


def test_blanks_at_the_beginning_of_a_line_stay(tab, writer):
    shown = texts(tab, next(send(tab, "def f():\n    return\t1")))[0]
    assert shown == "def f():\n&nbsp;&nbsp;&nbsp;&nbsp;return  1"
    (made,) = tab.chatbot.postprocess([{"role": "user", "content": shown}]).root
    assert made.content[0].text == shown
