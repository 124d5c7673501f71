"""The arena's page in a real browser, with a real sample_gradio.py and a real server.py.

The browser reaches the page through a Tap, a proxy that records all bytes in both directions.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
import torch
from conftest import ROOT
from tiny_run import save_run, save_scripted_run

from minigpt.arena.store import Ledger
from minigpt.models import checkpoint
from model import GPT

INSTALL = "needs a browser: pip install playwright; apt-get install chromium"
playwright = pytest.importorskip("playwright.sync_api", reason=INSTALL)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=INSTALL)
expect = playwright.expect

PATIENCE = 30  # seconds: what should be over long before, on the busiest machine
AUTH = ("class", "a secret")
ADMIN = "another one"
# Before a vote nobody tells the models' names, here and at their server.
MODELS = ("north-run", "lab-east", "lab-slow")
REMOTE = ("east-model", "slow-model")
TABS = ("Chat", "Arena", "Leaderboard", "History", "Endpoints")


# -- what is served --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory, byte_tokenizer):
    """A folder of runs: north-run writes 北京。, east-model 上海。, slow-model 天a天a… for ever."""
    home = tmp_path_factory.mktemp("arena")
    save_scripted_run(home / "out" / "north-run", byte_tokenizer, "北京。", block_size=512)
    save_scripted_run(home / "out" / "east-model", byte_tokenizer, "上海。", block_size=512)
    options = dict(cycle=True, block_size=512)
    shallow = save_scripted_run(home / "shallow", byte_tokenizer, "天a", **options)
    save_slower(shallow, home / "out" / "slow-model", byte_tokenizer)
    return home


def save_slower(shallow, folder, tokenizer, n_layer=24):
    """Save a run that writes what the one in `shallow` writes, with many layers that add nothing
    and take some milliseconds a token."""
    scripted = checkpoint.load(shallow).model
    model = GPT(replace(scripted.config, n_layer=n_layer))
    model.load_state_dict(scripted.state_dict(), strict=False)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight.zero_()
            block.mlp.proj.weight.zero_()
    save_run(folder, model, tokenizer, "qa")


@contextlib.contextmanager
def process(home, script, *words):
    """A script of the project that runs in `home`; its stderr goes to a file beside it."""
    command = [sys.executable, str(ROOT / script), *words]
    with open(home / f"{script}.log", "w") as log:
        running = subprocess.Popen(
            command,
            cwd=home,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
        )
        try:
            yield running
        finally:
            running.kill()
            running.wait()
            running.stdout.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def served(home):
    """(address of server.py, address of the page), both up."""
    words = (
        f"--out_dir={home / 'out/east-model'},{home / 'out/slow-model'}",
        f"--port={free_port()}",
    )
    with process(home, "server.py", *words) as server:
        server_url = f"http://127.0.0.1:{words[1].partition('=')[2]}"
        rows = ["name,base_url,model", f"lab-east,{server_url},east-model"]
        rows.append(f"lab-slow,{server_url}/v1,slow-model")
        (home / "endpoints.csv").write_text("\n".join(rows), encoding="utf-8-sig")
        (home / "examples.csv").write_text("prompt\n黄河发源于哪里？\n", encoding="gb18030")
        port = free_port()
        words = ["--runs=out/north-run", "--endpoints=endpoints.csv", f"--port={port}"]
        words += [f"--auth={':'.join(AUTH)}", f"--admin_password={ADMIN}", "--most_battles=2"]
        with process(home, "sample_gradio.py", *words) as page:
            until(lambda: is_up(server, f"{server_url}/health", 200), 4 * PATIENCE)
            until(lambda: is_up(page, f"http://127.0.0.1:{port}/", 401), 4 * PATIENCE)
            yield server_url, f"http://127.0.0.1:{port}"


def is_up(running, url, status):
    assert running.poll() is None, "it has ended: see its log"
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(url, timeout=PATIENCE).status_code == status


class Tap:
    """Another port of a server, which keeps all that goes through it, uncompressed."""

    def __init__(self, port):
        self._port, self._kept, self._open = port, [], []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            here, _ = self._listener.accept()
            there = socket.create_connection(("127.0.0.1", self._port))
            self._open += [here, there]
            for pair in ((here, there), (there, here)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source, sink):
        kept = bytearray()
        self._kept.append(kept)
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                data = data.replace(b"\r\nAccept-Encoding:", b"\r\nX-No-Encoding:")
                kept += data
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def cut(self):
        """End all connections, as a telephone does that goes to sleep."""
        while self._open:
            with contextlib.suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def forget(self):
        for kept in list(self._kept):
            kept.clear()

    def text(self):
        return "\n".join(bytes(kept).decode("utf-8", "replace") for kept in list(self._kept))


@pytest.fixture(scope="module")
def tap(served):
    return Tap(int(served[1].rpartition(":")[2]))


# -- the browser -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def shared_contexts():
    """Browser contexts that tests share one after the other, for their caches."""
    return []


@pytest.fixture
def visit(browser, tap, shared_contexts):
    """visit(**options): the page in a browser context of its own, without cookies, with
    its models loaded. options: of a new context.

    Whatever a test does: no request goes anywhere else, and no script fails.
    """
    expect.set_options(timeout=1000 * PATIENCE)
    contexts, pages, elsewhere, errors = [], [], [], []

    def heard(request):
        if not request.url.startswith(("data:", f"{tap.url}/", f"blob:{tap.url}/")):
            elsewhere.append(request.url)

    def new_context(options):
        free = [] if options else [each for each in shared_contexts if not each.pages]
        if free:
            free[0].clear_cookies()
            return free[0]
        defaults = {"locale": "en-US", "http_credentials": CREDENTIALS}
        context = browser.new_context(**{**defaults, **options})
        (contexts if options else shared_contexts).append(context)
        return context

    def visit(**options):
        page = new_context(options).new_page()
        pages.append(page)
        page.set_default_timeout(1000 * PATIENCE)
        page.on("request", heard)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(tap.url)
        expect(page.locator("#chat-model input")).to_have_value("north-run")
        return page

    yield visit
    for each in [*pages, *contexts]:
        each.close()
    assert elsewhere == [] and errors == []


CREDENTIALS = {"username": AUTH[0], "password": AUTH[1]}


def open_tab(page, name):
    tab = page.locator("button[role=tab]").get_by_text(name, exact=True)
    if not tab.is_visible():  # on a narrow page it is in the menu
        page.locator(".overflow-menu > button").click()
        tab = page.locator(".overflow-dropdown button").get_by_text(name, exact=True)
    tab.click()


def choose_model(page, name):
    page.locator("#chat-model input").click()
    page.get_by_role("option", name=name).click()
    expect(page.locator("#chat-model input")).to_have_value(name)


def say(page, text):
    page.fill("#chat-question textarea", text)
    page.click("#chat-send")


def answers(page):
    return page.locator('#chat-messages [data-testid="bot"]')


def battle(page, prompt, models=()):
    """Begin a battle: a blind one, or an open one of `models`."""
    open_tab(page, "Arena")
    if models:
        listed = page.locator("#arena-models").get_by_label(models[0], exact=True)

        def is_open():  # the choice may arrive while the tab still loads its models; then once more
            page.locator('#arena-mode input[value="open"]').check()
            with contextlib.suppress(playwright.TimeoutError):
                listed.wait_for(timeout=3000)
                return True
            page.locator('#arena-mode input[value="blind"]').check()
            page.wait_for_timeout(1000)
            return False

        until(is_open)
        boxes = page.locator("#arena-models input")
        for i in range(boxes.count()):
            boxes.nth(i).set_checked(boxes.nth(i).evaluate("box => box.name") in models)
    page.fill("#arena-question textarea", prompt)
    page.click("#arena-send")


def card(page, place):
    return page.locator(f"#side-{place} .card")


def names_of(page):
    heads = [card(page, place).locator(".head") for place in (0, 1)]
    hidden = heads[0].locator(".name").count() == 0
    return [head.locator(".letter" if hidden else ".name").inner_text() for head in heads]


def leaderboard(page):
    """name → battles, from the tab."""
    open_tab(page, "Leaderboard")
    page.locator("#board .data-table, #board .quiet").first.wait_for()
    rows = page.locator("#board .data-table").first.locator("tr:has(td)")
    cells = rows.evaluate_all("rows => rows.map(row => [...row.cells].map(c => c.innerText))")
    return {row[1]: int(row[6]) for row in cells}


def change_list(page, button, name, url="", password=ADMIN, says="{name} was {button}"):
    """Add or remove an endpoint by the page, which says so."""
    open_tab(page, "Endpoints")
    if not page.locator("#admin-password").is_visible():
        page.get_by_role("button", name="Add or remove").click()
    page.fill("#admin-password input", password)
    page.fill("#endpoint-name textarea", name)
    page.fill("#endpoint-url textarea", url)
    page.click(f"#endpoint-{button}")
    expect(page.locator("#endpoint-message")).to_contain_text(says.format(name=name, button=button))


@contextlib.contextmanager
def listed(page, **servers):
    """Servers on the list by name → port, for so long."""
    for name, port in servers.items():
        change_list(page, "add", name, f"http://127.0.0.1:{port}")
    try:
        yield
    finally:
        for name in servers:
            change_list(page, "remove", name)


@pytest.fixture
def answering():
    """answering(do): the port of a server that lists one model as it should; asked to write, it
    does do(handler)."""
    servers = []

    def answering(do):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = json.dumps({"data": [{"id": "m"}]}).encode()
                self.send_response(200 if self.path == "/v1/models" else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                do(self)

            def log_message(self, *words):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        servers[-1].daemon_threads = True
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1].server_port

    yield answering
    for server in servers:
        server.shutdown()
        server.server_close()


def write(handler, *texts):
    """A streamed answer of these texts, as OpenAI's API has it."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.end_headers()
    for text in texts:
        choice = {"delta": {"content": text}, "finish_reason": None}
        handler.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
    handler.wfile.write(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n')
    handler.wfile.write(b"data: [DONE]\n\n")


def test_a_second_page_on_the_same_votes_is_refused(served, home):
    words = [sys.executable, str(ROOT / "sample_gradio.py"), f"--port={free_port()}"]
    result = subprocess.run(words, cwd=home, capture_output=True, text=True, timeout=4 * PATIENCE)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("out/arena.sqlite: sample_gradio.py (process ")
    assert line.endswith(" is writing it; wait, or use a different --ledger")


# -- chat ------------------------------------------------------------------------------------------


def test_an_answer_is_streamed(visit):
    page = visit()
    choose_model(page, "lab-slow")
    page.evaluate("""() => { window.seen = []; new MutationObserver(() => {
        const all = document.querySelectorAll('#chat-messages [data-testid="bot"]');
        if (all.length) window.seen.push(all[all.length - 1].innerText.trim());
    }).observe(document.querySelector('#chat-messages'),
        {subtree: true, childList: true, characterData: true}) }""")
    say(page, "天为什么？")
    expect(page.locator("#chat-status")).to_contain_text("in total")
    expect(answers(page)).to_have_text("天a" * 56)  # 225 tokens: a turn of 天a is four
    steps = [text for text in dict.fromkeys(page.evaluate("window.seen")) if "天" in text]
    assert len(steps) > 2 and all(b.startswith(a) for a, b in itertools.pairwise(steps))


def test_typed_text_stays_while_an_answer_is_streamed(visit, served):
    """And what is cleared meanwhile does not come back."""
    page = visit()
    choose_model(page, "lab-slow")
    say(page, "天为什么？")
    expect(answers(page)).to_contain_text("天")
    page.fill("#chat-question textarea", "下一个问题")
    length = len(answers(page).inner_text())
    until(lambda: len(answers(page).inner_text()) > length)
    expect(page.locator("#chat-question textarea")).to_have_value("下一个问题")
    page.click("#chat-clear")
    until(lambda: running(served) == 0)
    page.wait_for_timeout(1000)
    expect(answers(page)).to_have_count(0)


def test_stop_ends_the_generation_on_the_server(visit, served, home):
    page = visit()
    choose_model(page, "lab-slow")
    longest_answer(page, 1024)
    say(page, "写吧")
    expect(answers(page)).to_contain_text("天")
    assert running(served) == 1
    began = time.monotonic()
    page.click("#chat-stop")
    expect(page.locator("#chat-status")).to_contain_text("in total")
    until(lambda: running(served) == 0)
    assert time.monotonic() - began < 5  # of it, as a rule, some tenths of a second
    assert len(answers(page).inner_text()) < 2 * 1024 / 4  # a turn of 天a is four tokens


def longest_answer(page, n_tokens):
    """Set the slider of the chat."""
    page.get_by_role("button", name="Settings").first.click()
    box = page.get_by_label("number input for Longest answer, in tokens").first
    box.fill(str(n_tokens))
    box.press("Tab")


def running(served):
    return requests.get(f"{served[0]}/health", timeout=PATIENCE).json()["running"]


def test_enter_during_chinese_input(visit):
    page = visit(locale="zh-CN")
    expect(page.locator("#chat-send")).to_have_text("发送")
    page.locator("#chat-question textarea").focus()
    keyboard = page.context.new_cdp_session(page)
    composing = dict(text="中国的首都", selectionStart=5, selectionEnd=5)
    keyboard.send("Input.imeSetComposition", composing)
    page.keyboard.press("Enter")  # ends the word, and is no order to send it
    page.wait_for_timeout(700)
    expect(answers(page)).to_have_count(0)
    keyboard.send("Input.insertText", {"text": "中国的首都？"})
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text("北京。")
    expect(page.locator('#chat-messages [data-testid="user"]')).to_have_text("中国的首都？")
    expect(page.locator("#chat-status")).to_contain_text("token/秒")


def test_what_a_model_writes_is_text(visit, answering):
    """No tag of it becomes one, in the chat nor in a battle."""
    hostile = '<img src=x onerror="window.broken=1"><b>粗</b>'
    page = visit()
    with listed(page, hostile=answering(lambda handler: write(handler, hostile[:9], hostile[9:]))):
        open_tab(page, "Chat")
        choose_model(page, "hostile")
        say(page, hostile)
        expect(answers(page)).to_have_text(hostile)
        battle(page, hostile, ["hostile", "north-run"])
        expect(page.locator("#side-0 .text, #side-1 .text").get_by_text(hostile)).to_be_visible()
        expect(page.locator("#vote-0")).to_be_visible()
        assert page.evaluate("window.broken") is None
        assert page.locator("#chat-messages img[src=x], .card img, .card b").count() == 0


# -- battles ---------------------------------------------------------------------------------------


def secrets_in(text, served):
    port = served[0].rpartition(":")[2]
    # Not the lists of all models and what is chosen in the chat: they may be late.
    text = re.sub(r'\{"choices":\[\[[^{}]*\}|"data":\["north-run",\[\]\]', "", text)
    return [name for name in (*MODELS, *REMOTE, f":{port}") if name in text]


def test_a_blind_battle_hides_the_names_before_the_vote(visit, tap, served):
    page = visit()
    open_tab(page, "Arena")
    page.wait_for_timeout(500)
    before = page.content()
    for _ in range(2):  # another pair, as a rule
        tap.forget()
        battle(page, "首都是哪里？")
        expect(page.locator("#arena-status")).to_contain_text("All have answered")
        page.locator("#vote-0").wait_for()
        assert names_of(page) == ["A", "B"]
        assert len(card(page, 0).locator(".text").inner_text()) > 2
        assert secrets_in(tap.text(), served) == []
        after = page.content()
        assert [after.count(name) for name in MODELS] == [before.count(name) for name in MODELS]
        page.click("#vote-0")
        expect(page.locator("#arena-status")).to_contain_text("Your vote is saved")
        names = names_of(page)
        assert len(set(names)) == 2 and set(names) <= set(MODELS)
        assert set(secrets_in(tap.text(), served)) >= set(names)  # the tap would have heard them


def test_a_vote_changes_the_leaderboard_and_survives_a_reload(visit, served, home):
    page = visit()
    before = leaderboard(page)
    battle(page, "这是第一个问题吗？")
    page.locator("#vote-1").wait_for()
    assert "第一个问题" not in download(served, "battles.jsonl")
    page.click("#vote-1")
    expect(page.locator("#arena-status")).to_contain_text("Your vote is saved")
    expect(card(page, 1)).to_have_class(re.compile("chosen"))
    for name in ("vote-0", "vote-1", "vote-tie", "vote-none"):  # the names are shown
        expect(page.locator(f"#{name}")).to_be_disabled()
    expected = dict(before)
    for name in names_of(page):
        expected[name] = expected.get(name, 0) + 1
    winner = names_of(page)[1]
    until(lambda: leaderboard(page) == expected)
    page.reload()
    selected = page.locator("button[role=tab][aria-selected=true]").first
    expect(selected).to_have_text("Arena")  # where the last question was
    until(lambda: leaderboard(page) == expected)
    open_tab(page, "History")
    page.locator("#history-battles .battle").first.wait_for()
    page.fill("#history-search textarea", "第一个问题")

    def is_found():  # Enter may arrive while the tab still loads its list; then once more
        page.locator("#history-search textarea").press("Enter")
        page.wait_for_timeout(1000)
        return page.locator("#history-battles .battle").count() == 1

    until(is_found)
    expect(page.locator("#history-battles .card.chosen .name")).to_have_text(winner)
    (line,) = [line for line in download(served, "battles.jsonl").splitlines() if "第一个" in line]
    assert json.loads(line)["choice"] == 1
    assert winner in download(served, "leaderboard.csv")


def test_an_open_vote_can_be_changed_after_the_connection_was_lost(visit, tap, served):
    def choice():
        (line,) = [
            line for line in download(served, "battles.jsonl").splitlines() if "改票" in line
        ]
        return json.loads(line)["choice"]

    page = visit()
    battle(page, "可以改票吗？", ["lab-east", "north-run"])
    page.locator("#vote-1").wait_for()
    tap.cut()
    page.wait_for_timeout(2000)  # the server notices it
    page.click("#vote-tie")
    expect(page.locator("#arena-status")).to_contain_text("You can change it")
    assert choice() == "tie"
    page.click("#vote-1")  # replaces the first vote
    expect(card(page, 1)).to_have_class(re.compile("chosen"))
    assert choice() == 1


@pytest.mark.parametrize("when", ["in the middle", "before the vote", "after the vote"])
def test_a_page_that_was_cut_off_finds_its_battle_again(visit, tap, served, when):
    page = visit()
    battle(page, f"断线 {when}", ["lab-slow", "north-run"])
    expect(page.locator(".card .text").get_by_text("天").first).to_be_visible()
    if when != "in the middle":
        page.locator("#vote-0").wait_for()
    if when == "after the vote":
        page.click("#vote-0")
        expect(page.locator("#arena-status")).to_contain_text("Your vote is saved")
    tap.cut()
    page.reload()
    expect(page.locator(".card .text").get_by_text("天").first).to_be_visible()  # in the Arena tab
    page.locator("#vote-0").wait_for()
    if when == "after the vote":
        expect(card(page, 0)).to_have_class(re.compile("chosen"))
        return
    page.click("#vote-1")
    expect(page.locator("#arena-status")).to_contain_text("Your vote is saved")
    (line,) = [line for line in download(served, "battles.jsonl").splitlines() if when in line]
    assert json.loads(line)["choice"] == 1


def test_a_page_that_was_cut_off_finds_its_chat_again(visit, tap):
    page = visit()
    choose_model(page, "lab-slow")
    say(page, "断线？")
    expect(answers(page)).to_contain_text("天")
    tap.cut()
    page.reload()
    expect(answers(page)).to_have_text("天a" * 56)  # 225 tokens: it was written to its end


def download(served, name):
    answer = requests.get(f"{served[1]}/download/{name}", auth=AUTH, timeout=PATIENCE)
    assert answer.status_code == 200 and "attachment" in answer.headers["Content-Disposition"]
    return answer.content.decode()


def test_dead_endpoints_affect_no_other(visit, answering):
    page = visit()
    gone = threading.Event()
    dead = dict(
        refused=free_port(),
        failing=answering(lambda handler: handler.send_error(500)),
        babbling=answering(lambda handler: handler.wfile.write(b"\xff\x00\r\n" * 500)),
        stalled=answering(lambda handler: gone.wait(2 * PATIENCE)),
    )
    with listed(page, **dead):
        battle(page, "还在吗？", ["north-run", "refused", "failing", "babbling"])
        expect(page.locator("#arena-status")).to_contain_text("nothing to vote on")
        indices = {card(page, i).locator(".name").inner_text(): i for i in range(4)}
        alive = card(page, indices.pop("north-run"))
        expect(alive).to_have_attribute("data-status", "done")
        expect(alive.locator(".text")).to_have_text("北京。")
        assert set(indices) == {"refused", "failing", "babbling"}
        for place in indices.values():
            expect(card(page, place)).to_have_attribute("data-status", "failed")
            expect(card(page, place).locator(".note")).to_contain_text(
                "this answer was interrupted"
            )
        expect(page.locator("#vote-0")).to_be_hidden()

        battle(page, "你呢？", ["north-run", "stalled"])
        expect(page.locator(".card[data-status=done] .text")).to_have_text("北京。")
        expect(page.locator(".card[data-status=waiting]")).to_have_count(1)
        page.click("#arena-stop")
        expect(page.locator(".card[data-status=stopped]")).to_have_count(1)
        expect(page.locator("#arena-status")).to_contain_text("nothing to vote on")
        gone.set()


def test_two_browsers_at_once(visit, home):
    ledger = Ledger(home / "out" / "arena.sqlite")
    with contextlib.closing(ledger):
        n_before = len(ledger.decided("open"))
        pages = [visit(), visit()]
        for page in pages:
            battle(page, "一起写吧", ["lab-slow", "lab-east"])
        for page, choice in zip(pages, (0, 1), strict=True):
            page.locator("#vote-0").wait_for()
            page.click(f"#vote-{choice}")
            expect(page.locator("#arena-status")).to_contain_text("Your vote is saved")
        assert [decided.choice for decided in ledger.decided("open")[n_before:]] in ([0, 1], [1, 0])
        voters = {found.voter for found in ledger.battles("一起写吧", kind="open")}
        cookies = {page.context.cookies()[0]["value"].partition(".")[0] for page in pages}
        assert voters == cookies and len(voters) == 2


# -- a window into the model -----------------------------------------------------------------------


def test_the_tokens_of_an_answer_and_of_a_text(visit):
    page = visit()
    open_tab(page, "Tokens")
    expect(page.locator("#tokens-model input")).to_have_value("north-run")
    page.fill("#tokens-text textarea", "首都在哪？")
    tokens = page.locator("#tokens-result .t[tabindex]")
    page.click("#tokens-answer")
    expect(tokens.first).to_be_visible()
    answer = tokens.evaluate_all("all => all.map(each => each.firstChild.textContent).join('')")
    assert bytes.fromhex(re.sub("[⟨⟩ ]", "", answer)).decode() == "北京。"  # its tokens are bytes
    expect(tokens.first.locator(".pop")).to_be_hidden()
    tokens.first.click()
    expect(tokens.first.locator(".pop")).to_contain_text("left by the settings")
    page.click("#tokens-score")
    expect(tokens).to_have_count(len("首都在哪？".encode()))
    page.click("#tokens-cut")
    titles = page.locator("#tokens-result h4")
    expect(titles).to_have_text(["zh", "gpt2", "north-run"])
    page.fill("#tokens-text textarea", "")
    page.click("#tokens-answer")
    expect(page.locator("#tokens-result")).to_contain_text("text: empty")


def test_a_training_is_followed_while_it_runs(visit, home):
    """In Chinese: no value of the page is taken for the key of a string."""
    log = home / "out" / "training" / "log.jsonl"
    log.parent.mkdir()
    line = dict(step=1, tokens=64, minutes=0.1, loss=9.0, lr=1e-3, rate=100.0)
    log.write_text(json.dumps(line) + "\n")
    page = visit(locale="zh-CN")
    open_tab(page, "训练")
    report = page.locator("#runs-report")
    expect(report.locator(".runs-legend")).to_contain_text("training")
    expect(report).to_contain_text("1 · 0.1 min")
    with log.open("a") as file:
        file.write(json.dumps({**line, "step": 777, "loss": 5.0}) + "\n")
    expect(report).to_contain_text("777 · 0.1 min")  # it looks again by itself
    page.locator('#runs-x input[value="minutes"]').check()
    expect(report.locator(".curves")).to_contain_text("分钟")
    expect(page.locator(".toast-body")).to_have_count(0)


# -- who may do what -------------------------------------------------------------------------------


def test_the_whole_page_asks_for_a_password(browser, served):
    for path in ("/", "/config", "/theme.css", "/gradio_api/queue/data", "/download/battles.jsonl"):
        for auth in (None, (AUTH[0], "wrong"), ("", "")):
            answer = requests.get(served[1] + path, auth=auth, timeout=PATIENCE)
            assert answer.status_code == 401 and "Basic" in answer.headers["WWW-Authenticate"]
            assert not any(name in answer.text for name in MODELS)
    answer = requests.get(served[1], auth=AUTH, timeout=PATIENCE)
    assert answer.status_code == 200
    assert "connect-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "httponly" in answer.headers["Set-Cookie"].lower()


def test_an_admin_adds_and_removes(visit, served):
    page, other = visit(), visit()
    choose_model(other, "lab-east")
    change = dict(name="lab-new", url=f"{served[0]}")
    change_list(page, "add", **change, password="guess", says="password is wrong")
    change_list(page, "remove", name="nobody", says="no endpoint called nobody")
    change_list(page, "remove", name="lab-east", password="", says="password is wrong")
    table = page.locator("#endpoint-table")
    expect(table).to_contain_text("lab-east")
    expect(table).not_to_contain_text("lab-new")
    change_list(page, "add", **change)
    row = table.locator("tr", has_text="lab-new")
    expect(row.locator(".badge")).to_have_text("ok")
    expect(row).to_contain_text("east-model, slow-model")
    open_tab(page, "Chat")
    page.locator("#chat-model input").click()
    expect(page.get_by_role("option", name="lab-new")).to_be_visible()
    open_tab(other, "Arena")  # a page that was open already learns of it
    open_tab(other, "Chat")
    expect(other.locator("#chat-model input")).to_have_value("lab-east")  # and stays with its own
    choose_model(other, "lab-new")
    change_list(page, "remove", name="lab-new")
    expect(table).not_to_contain_text("lab-new")


# -- how it looks ----------------------------------------------------------------------------------


def test_a_phone_needs_no_sideways_scrolling(visit):
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True)
    say(page, "长" * 100)
    battle(page, "窄" * 100, ["lab-slow", "north-run"])
    page.locator("#vote-0").wait_for()
    for name in TABS:
        open_tab(page, name)
        page.wait_for_timeout(300)
        wide = page.evaluate("document.documentElement.scrollWidth")
        rights = "all => all.map(each => each.getBoundingClientRect().right)"
        seen = page.locator(".card, .data-table, textarea, button[id]").evaluate_all(rights)
        assert max(wide, *seen) <= 390, name


def test_a_waiting_visitor_sees_the_position_in_the_queue(visit):
    """Two may write at once; a third waits."""
    pages = [visit() for _ in range(3)]
    for page in pages[:2]:
        choose_model(page, "lab-slow")
        longest_answer(page, 1024)
        say(page, "写吧")
        expect(answers(page)).to_contain_text("天")
    say(pages[2], "首都在哪？")
    expect(pages[2].locator("#chat-status")).to_contain_text("queue: 1/1")
    assert answers(pages[2]).count() == 0
    for page in pages[:2]:
        page.click("#chat-stop")
    expect(answers(pages[2])).to_have_text("北京。")
