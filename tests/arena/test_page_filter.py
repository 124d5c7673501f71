"""Attacks on the arena's page: the installed Gradio behind the filter.

No browser and no sockets: requests go directly to the ASGI app.
"""

import json
import logging
import re
from html import unescape

import pytest
from fastapi import FastAPI
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from minigpt.arena.access import event_streams
from minigpt.arena.access.admin import AdminPassword
from minigpt.arena.access.event_streams import EventStreams
from minigpt.arena.access.page_filter import COOKIE, MAX_BODY_BYTES, ROUTES, PageFilter
from minigpt.arena.access.rate_limit import VisitorLimits
from minigpt.arena.access.voters import Voters
from minigpt.arena.arena import MAX_PROMPT_CHARS, Arena
from minigpt.arena.endpoints import Endpoints
from minigpt.arena.health import HealthMonitor
from minigpt.arena.i18n import ENGLISH
from minigpt.arena.store import Ledger
from minigpt.arena.ui.app import make_app
from minigpt.arena.ui.context import PageContext
from minigpt.arena.ui.endpoints import OWN_SECRETS, may_be_sent
from minigpt.arena.ui.page import Page
from minigpt.arena.ui.sampling import SLIDERS, sampling_settings
from minigpt.common.errors import UserError
from minigpt.common.presets import PresetPrompt
from minigpt.serving.allowed_hosts import AllowedHosts

HOST = "http://localhost:7860"
HOSTS = AllowedHosts()


class Side:
    takes, finish_reason, usage = (), "stop", None

    def __init__(self, text):
        self.text = text

    def stream(self, messages, settings):
        self.messages = messages
        yield self.text

    def close(self):
        pass


class Entry:
    """An endpoint that always answers the same."""

    is_alive, prompt_format = True, None

    def __init__(self, name):
        self.name, self.sides = name, []

    def side(self):
        self.sides.append(Side(f"回答 {self.name}"))
        return self.sides[-1]

    def probe(self):
        raise AssertionError("not asked")


PROMPTS = [PresetPrompt("甲？", "qa"), PresetPrompt("乙，", "plain")]


@pytest.fixture(scope="module")
def entries():
    return [Entry("a"), Entry("b")]


@pytest.fixture(scope="module")
def page(tmp_path_factory, entries):
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "arena.sqlite")
    arena = Arena(Endpoints(entries), ledger, max_battles=4)
    context = PageContext(arena, PROMPTS, Voters(b"k" * 32), VisitorLimits(10_000))
    yield Page(context, HealthMonitor(arena.endpoints), AdminPassword("admin"), None)
    ledger.close()


@pytest.fixture(scope="module")
def bare(page):
    """The app that the filter is around: Gradio's routes and the downloads."""
    return make_app(page)


@pytest.fixture(scope="module")
def running(bare, page):
    """The filtered app, started."""
    with TestClient(PageFilter(bare, page.context.voters, HOSTS), base_url=HOST) as client:
        yield client


@pytest.fixture
def visitor(running, page):
    """A visitor with a cookie of their own and nothing else."""
    running.cookies.clear()
    running.cookies.set(COOKIE, page.context.voters.new_cookie())
    yield running
    running.cookies.clear()


def open_page(client, session):
    """What a browser does first: the lists of models are filled."""
    call(client, "model_lists", session=session)


def shown(messages):
    """What the last message with output shows, as text."""
    done = [each for each in messages if each["msg"] == "process_completed"]
    assert done and done[-1]["success"], messages
    return unescape(json.dumps(messages, ensure_ascii=False))


def call(client, name, values=None, session="page1"):
    """Run an event as the page does, its inputs given by their elem_id, the others as the page
    shows them first; returns the messages of its stream."""
    config = client.get("/config").json()
    components = {each["id"]: each["props"] for each in config["components"]}
    (event,) = [each for each in config["dependencies"] if each["api_name"] == name]
    inputs = {
        components[each]["elem_id"]: components[each].get("value") for each in event["inputs"]
    }
    assert set(values or ()) <= set(inputs), inputs
    return send_event(client, event, list({**inputs, **(values or {})}.values()), session)


def send_event(client, event, data, session="page1"):
    """Run an event with any data."""
    body = dict(data=data, fn_index=event["id"], session_hash=session)
    joined = client.post("/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return joined
    stream = client.get("/gradio_api/queue/data", params={"session_hash": session})
    lines = [line for line in stream.text.splitlines() if line.startswith("data:")]
    return [json.loads(line[5:]) for line in lines]


def chat_question(text):
    return {"chat-question": text, "chat-model": "a"}


def battle_question(text, models=()):
    mode = {"arena-mode": "open", "arena-models": models} if models else {}
    return {"arena-question": text, **mode}


# -- routes ----------------------------------------------------------------------------------------


def gradio_routes(bare):
    """(method, a path that matches) of every route of the installed Gradio."""
    (mount,) = [route for route in bare.routes if isinstance(route, Mount)]

    def each(routes):
        for route in routes:
            if hasattr(route, "original_router"):  # an included APIRouter
                yield from each(route.original_router.routes)
            else:
                yield route

    for route in each(mount.app.routes):
        path = re.sub(r"\{\w+(:path)?\}", "x", route.path)
        for method in getattr(route, "methods", None) or ["GET"]:
            yield method, path


USED = {
    *(("GET", path) for path in ("/", "/config", "/theme.css", "/favicon.ico")),
    *(("GET", path) for path in ("/assets/x", "/static/x", "/gradio_api/app_id")),
    *(("GET", f"/gradio_api/{name}") for name in ("queue/data", "heartbeat/x")),
    *(("POST", f"/gradio_api/{name}") for name in ("queue/join", "cancel", "reset")),
    ("HEAD", "/"),
}


def test_gradio_has_no_open_route_that_the_page_does_not_use(bare):
    open_routes = {
        (method, path)
        for method, path in gradio_routes(bare)
        if method in ROUTES and ROUTES[method].fullmatch(path)
    }
    assert open_routes == USED
    assert len(set(gradio_routes(bare))) > 60  # the others are there, and closed


def test_a_closed_route_is_not_found_whatever_its_spelling(visitor):
    paths = [path.lstrip("/") for method, path in gradio_routes(visitor.app._app)]
    paths += [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=http://127.0.0.1:1/x",
        "gradio_api/%66ile=/etc/passwd",
        "gradio_api//file=/etc/passwd",
        "gradio_api/proxy=http://127.0.0.1:1/x",
        "gradio_api/heartbeat/../file=/etc/passwd",
        "assets/../gradio_api/file=/etc/passwd",
        "monitoring",
        "docs",
        "openapi.json",
    ]
    for path in paths:
        # No other method is in ROUTES at all, so a few paths tell.
        others = ("PUT", "DELETE", "PATCH", "OPTIONS") if path in paths[:3] else ()
        for method in ("GET", "POST", *others):
            if (method, f"/{path}") in USED:
                continue
            answer = visitor.request(method, f"/{path}")
            assert answer.status_code in (404, 405), (method, path)
            assert "root:" not in answer.text


def test_no_route_is_reached_by_a_websocket(running):
    with pytest.raises(WebSocketDisconnect), running.websocket_connect("/gradio_api/queue/join"):
        pass


# -- files -----------------------------------------------------------------------------------------

FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}


def test_a_file_in_a_value_is_refused(bare, page, visitor):
    """Without has_launched Gradio copies the file to its cache and tells the URL."""
    events = visitor.get("/config").json()["dependencies"]
    assert sum(bool(event["inputs"]) for event in events) >= 10
    for event in events:
        if not event["inputs"] or not event["backend_fn"]:
            continue
        hostile = [{"role": "user", "content": [{"type": "file", "file": FILE}]}]
        answer = send_event(visitor, event, [hostile] * len(event["inputs"]))
        text = answer.text if hasattr(answer, "text") else json.dumps(answer)
        assert "file=" not in text and "root:" not in text, event["api_name"]


def test_a_page_keeps_its_own_conversation(visitor, entries):
    """What a client says of the chat so far is not an input of any event."""
    components = {c["id"]: c for c in visitor.get("/config").json()["components"]}
    for event in visitor.get("/config").json()["dependencies"]:
        kinds = {components[each]["type"] for each in event["inputs"]}
        # The server keeps a state itself; a dataset sends the number of a row, a number is the id
        # of a battle, of which the server knows the voter.
        harmless = {"textbox", "dropdown", "slider", "radio", "checkboxgroup", "dataset", "state"}
        assert kinds <= harmless | {"number"}, kinds
    open_page(visitor, "page1")
    assert "回答 a" in shown(call(visitor, "send", chat_question("你好？")))
    call(visitor, "send", chat_question("再问"))
    sent = [(m["role"], m["content"]) for m in entries[0].sides[-1].messages]
    assert sent == [("user", "你好？"), ("assistant", "回答 a"), ("user", "再问")]
    open_page(visitor, "page2")  # a new page continues; then each goes its own way
    call(visitor, "send", chat_question("二页"), session="page2")
    assert len(entries[0].sides[-1].messages) == 5
    call(visitor, "send", chat_question("一页"))
    sent = [m["content"] for m in entries[0].sides[-1].messages]
    assert len(sent) == 5 and "二页" not in sent


def test_a_new_page_shows_the_last_chat_and_battle(visitor, entries):
    open_page(visitor, "page3")
    call(visitor, "send", chat_question("断线之前"), session="page3")
    open_page(visitor, "page4")
    events = visitor.get("/config").json()["dependencies"]
    restored = [event for event in events if event["api_name"].startswith("restore")]
    assert len(restored) == 2
    texts = [shown(send_event(visitor, event, [], session="page4")) for event in restored]
    assert any("断线之前" in text for text in texts)


def test_no_reply_comes_with_the_end_of_a_stream(page, monkeypatch):
    """An event that a page sends right after the end of its stream is answered after a pause."""
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(event_streams, "sleep", sleep)
    app = PageFilter(EventStreams(make_app(page), pause=60), page.context.voters, HOSTS)
    with TestClient(app, base_url=HOST) as client:
        for session in ("ended1", "ended2", "ended2"):
            open_page(client, session)
    assert slept[:2] == [0, 0] and 0 < slept[2] <= 60


def test_the_preset_prompts_suit_the_model(visitor, entries, monkeypatch):
    monkeypatch.setattr(Entry, "prompt_format", "plain", raising=False)
    updates = shown(call(visitor, "show_presets", {"chat-model": "a"}))
    assert "乙，" in updates and "甲？" not in updates


# -- sizes -----------------------------------------------------------------------------------------


def test_a_large_body_is_refused_unread(visitor, caplog):
    sent = []

    def parts():
        for _ in range(400):
            sent.append(1)
            yield b"x" * 4096

    text = "x" * (MAX_BODY_BYTES + 1)
    answer = visitor.post("/gradio_api/queue/join", content=text)
    assert answer.status_code == 413 and str(MAX_BODY_BYTES) in answer.text
    assert visitor.post("/gradio_api/queue/join", content=parts()).status_code == 413
    assert "xxxx" not in caplog.text


def test_a_long_question_is_refused(visitor, page):
    long = "长" * (MAX_PROMPT_CHARS + 1)
    for name, values in (("send", chat_question(long)), ("battle", battle_question(long))):
        open_page(visitor, "page3")
        text = json.dumps(call(visitor, name, values, "page3"), ensure_ascii=False)
        assert f"max_length {MAX_PROMPT_CHARS}" in text or "20,000" in text, text[:2000]
        assert "长长长" not in text
    assert page.context.arena.ledger.battles() == []


def test_the_history_shows_the_beginning_of_a_long_text():
    from minigpt.arena import html
    from minigpt.arena.store import BattleRecord, SideRecord

    side = SideRecord("a", "a", None, "长" * 20_000, None, None, None, "stop")
    battle = BattleRecord("open", "问" * 20_000, {}, 1, "v", (side, side), 1, 0.0, 0)
    assert len(html.history(ENGLISH, [battle] * 50)) < 50 * 3 * (html.MAX_HISTORY_CHARS + 400)


def test_a_seed_has_64_bits():
    values = {name: slider.default for name, slider in SLIDERS.items()}
    largest = dict(values, seed=str(2**63 - 1))
    assert sampling_settings(largest, ENGLISH)["seed"] == 2**63 - 1
    for seed in (str(2**63), "-" + "9" * 30, "x"):
        with pytest.raises(UserError, match="Seed"):
            sampling_settings(dict(values, seed=seed), ENGLISH)


# -- origins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["http://evil.test", "null", "http://localhost", HOST + "1"])
def test_another_origin_reads_and_sends_nothing(visitor, origin):
    for method, path in (("GET", "/config"), ("OPTIONS", "/gradio_api/queue/join"), ("GET", "/")):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = visitor.request(method, path, headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]
    answer = visitor.post("/gradio_api/queue/join", json={}, headers={"Origin": origin})
    assert answer.status_code == 403 and "may not send" in answer.text
    cross = {"Sec-Fetch-Site": "cross-site"}
    assert visitor.post("/gradio_api/queue/join", json={}, headers=cross).status_code == 403


def test_another_name_of_this_machine_is_refused(visitor):
    """DNS rebinding: a website whose name now means this machine."""
    for host in ("rebound.test", "localhost, rebound.test", "localhost.evil", "x y", "[::1"):
        for path in ("/", "/config", "/gradio_api/queue/data"):
            answer = visitor.get(path, headers={"Host": host})
            assert answer.status_code == 403 and "--allowed_hosts" in answer.text
    for host in ("localhost:7860", "127.0.0.1", "192.168.1.5:7860", "[::1]:7860", "LOCALHOST."):
        assert visitor.get("/config", headers={"Host": host}).status_code == 200


def test_the_page_s_own_origin_and_a_named_one_may_send(bare, page):
    client = TestClient(
        PageFilter(bare, page.context.voters, AllowedHosts(["Class.test"])), base_url=HOST
    )
    for origin in (HOST, "https://class.test"):
        answer = client.post("/gradio_api/queue/join", json={}, headers={"Origin": origin})
        assert answer.status_code == 422  # read, and found to ask for nothing


def test_query_parameters_by_which_gradio_reads_files(visitor):
    for query in ("page=nowhere", "deep_link=../../x", "deep_link=" + "a" * 32):
        answer = visitor.get(f"/?{query}&__theme=dark")
        assert answer.status_code == 200 and "deep_links" not in answer.text


# -- voters ----------------------------------------------------------------------------------------


def test_a_vote_needs_a_cookie_of_ours(running, page):
    forged = ["x", "x.y", "." + "0" * 64, f"{'v' * 22}.{'0' * 64}"]
    for cookie in [None, *forged]:
        running.cookies.clear()
        if cookie:
            running.cookies.set(COOKIE, cookie)
        messages = call(running, "battle", battle_question("甲？"), session="p")
        assert ENGLISH["no_cookie"] in shown(messages)
    running.cookies.clear()
    assert page.context.arena.ledger.battles() == []


def test_the_rate_of_a_voter_is_limited(visitor, page, monkeypatch):
    monkeypatch.setattr(page.context, "limits", VisitorLimits(60))
    open_page(visitor, "page4")
    battle = battle_question("甲？", ["a", "b"])
    refused = [
        "Too many requests" in shown(call(visitor, "battle", battle, "page4")) for _ in range(14)
    ]
    assert refused[:10] == [False] * 10 and refused[10:].count(True) >= 2  # one more in 6 s


def test_the_rate_of_an_address_is_limited(visitor, page, monkeypatch):
    """A script that takes a new cookie for each vote has one address."""
    limits = VisitorLimits(60)
    taken = [limits.wait("vote", f"voter {i}", "10.0.0.7") == 0.0 for i in range(40)]
    assert taken == [True] * 30 + [False] * 10
    assert limits.wait("vote", "voter 1", "10.0.0.8") == 0.0


def test_new_cookies_for_one_address_are_bounded(page):
    client = TestClient(PageFilter(FastAPI(), page.context.voters, HOSTS), base_url=HOST)
    n_issued = 0
    for _ in range(90):
        client.cookies.clear()
        n_issued += "set-cookie" in client.get("/").headers
    assert 10 < n_issued <= 60


# -- passwords -------------------------------------------------------------------------------------


def test_wrong_passwords_of_the_page_are_logged_and_slowed(bare, page, caplog):
    client = TestClient(PageFilter(bare, page.context.voters, HOSTS, "class:right"), base_url=HOST)
    assert client.get("/").status_code == 401
    with caplog.at_level(logging.WARNING, "minigpt"):
        codes = [client.get("/", auth=("class", f"wrong{i}")).status_code for i in range(12)]
    assert codes == [401] * 11 + [429]
    assert "wrong password for the page from" in caplog.text and "wrong3" not in caplog.text
    assert client.get("/", auth=("class", "right")).status_code == 429


def test_wrong_admin_passwords_are_logged_and_slowed(caplog):
    admin = AdminPassword("admin")
    with caplog.at_level(logging.WARNING, "minigpt"):
        for expected in ["wrong."] * 4 + ["Too many wrong passwords"]:
            with pytest.raises(UserError, match=expected):
                admin.check("guess", "10.0.0.7", ENGLISH)
    assert caplog.text.count("wrong admin password") == 4 and "guess" not in caplog.text
    with pytest.raises(UserError, match="Too many"):
        admin.check("admin", "10.0.0.7", ENGLISH)
    admin.check("admin", "10.0.0.8", ENGLISH)


def test_a_pupil_who_guesses_does_not_lock_the_teacher_out():
    """They share an address; with new cookies a guesser gets 30 attempts a minute and no more."""
    admin, there = AdminPassword("admin"), "10.0.0.7"
    admin.check("admin", there, ENGLISH, browser="teacher")

    def tries(password, browser):
        with pytest.raises(UserError) as caught:
            admin.check(password, there, ENGLISH, browser)
        return str(caught.value) == ENGLISH["wrong_password"]

    assert [tries("guess", "pupil") for _ in range(5)] == [True] * 4 + [False]
    assert not tries("admin", "pupil")  # also the right one, during the wait
    assert sum(tries("guess", f"cookie {i}") for i in range(60)) <= 30
    assert not tries("admin", "a browser that the teacher has just opened")
    admin.check("admin", there, ENGLISH, browser="teacher")
    admin.check("admin", "10.0.0.8", ENGLISH, browser="elsewhere")


def test_without_an_admin_password_nobody_is_admin():
    assert not AdminPassword("")
    with pytest.raises(UserError, match="wrong"):
        AdminPassword("").check("", "10.0.0.7", ENGLISH)


def test_which_variables_may_be_sent_as_keys():
    assert may_be_sent("MINIGPT_LAB_KEY")
    for name in ("HOME", "AWS_SECRET_ACCESS_KEY", *OWN_SECRETS):
        assert not may_be_sent(name)
