"""The Chat tab without a browser: its events are called directly, on a scripted endpoint."""

import gradio as gr
import pytest
from test_page_filter import Entry

from minigpt.arena.access.rate_limit import VisitorLimits
from minigpt.arena.access.voters import Voters
from minigpt.arena.arena import Arena
from minigpt.arena.endpoints import Endpoints
from minigpt.arena.ui import chat
from minigpt.arena.ui.chat import ChatTab
from minigpt.arena.ui.context import PageContext


class Request:
    headers, cookies, client, session_hash = {}, {}, None, "page"


@pytest.fixture
def tab(monkeypatch):
    """A tab on an endpoint that writes "一二三" in three chunks, each of which is shown."""
    monkeypatch.setattr(chat, "REFRESH_SECONDS", -1)
    entry = Entry("a")
    make_side = entry.side

    def side():
        side = make_side()
        side.stream = lambda messages, settings: iter("一二三")
        return side

    entry.side = side
    context = PageContext(Arena(Endpoints([entry]), None), [], Voters(b"k"), VisitorLimits(100))
    with gr.Blocks():
        return ChatTab(context)


def send(tab, question):
    """The updates of a question, one after the other."""
    values = {each: each.value for each in tab.sampling.components}
    return tab.send({**values, tab.model: "a", tab.question: question}, Request())


def texts(tab, update):
    return [message["content"] for message in update[tab.chatbot]]


def test_an_answer_is_streamed_and_stored(tab):
    first, *rest = send(tab, "问<b>")
    assert texts(tab, first) == ["问&lt;b&gt;", "…"] and first[tab.question] == ""
    assert [texts(tab, update)[1] for update in rest] == ["一", "一二", "一二三", "一二三"]
    assert not any(tab.question in update for update in rest)  # what is being typed stays
    stored = [message["content"] for message in tab.context.session(Request()).messages]
    assert stored == ["问<b>", "一二三"]


def test_a_cleared_answer_does_not_come_back(tab):
    updates = send(tab, "问")
    shown = [next(updates), next(updates)]
    assert texts(tab, shown[-1]) == ["问", "一"]
    assert texts(tab, tab.clear_chat(Request())) == []
    rest = list(updates)
    assert rest and all(texts(tab, update) == [] for update in rest)
    assert tab.context.session(Request()).messages == []


def test_the_next_question_replaces_an_answer(tab):
    old = send(tab, "一问")
    next(old)
    new = list(send(tab, "二问"))
    assert list(old) == []
    assert texts(tab, new[-1])[-2:] == ["二问", "一二三"]
