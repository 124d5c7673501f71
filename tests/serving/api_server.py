"""A server of the HTTP API for tests: in this process, over engines that a test can look at.

pytest_plugins = ["api_server"]      # its fixtures: runs, make_server, api, client
"""

import json
import socket
import threading
import time

import pytest
import requests
from tiny_run import save_scripted_run

from minigpt.inference.engine import Engine
from minigpt.inference.scheduler import QueueLimits, RequestScheduler
from minigpt.models import checkpoint
from minigpt.openai.request_reader import RequestLimits
from minigpt.serving.app import make_app
from minigpt.serving.service import Options, Served, Service
from minigpt.serving.wsgi import flush, listen

PATIENCE = 20  # seconds: a generous deadline for what takes a fraction of one
BLOCK = 64


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class SlowEngine(Engine):
    """Writes a token every few milliseconds, so that a test can come between."""

    def step(self):
        time.sleep(0.005)
        return super().step()


class BrokenEngine(Engine):
    """Fails after its fifth token."""

    def step(self):
        if any(len(ticket.tokens) == 5 for ticket in self.active):
            raise RuntimeError("a secret detail of /home/somebody")
        return super().step()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, byte_tokenizer):
    """The folder of two scripted runs: "sft" answers 北京。, "loop" writes 天a天a… for ever."""
    out = tmp_path_factory.mktemp("runs") / "out"
    save_scripted_run(out / "sft", byte_tokenizer, "北京。", block_size=BLOCK)
    save_scripted_run(out / "loop", byte_tokenizer, "天a", cycle=True, block_size=BLOCK)
    return out


class Server:
    """A server in this process, over engines that the test can look at."""

    def __init__(self, engines, models, options, limits=None):
        self.host = RequestScheduler(engines, limits or QueueLimits())
        self.service = Service(options)
        self.server = listen(make_app(self.service), "127.0.0.1", 0, threads=40)
        self.url = f"http://127.0.0.1:{self.server.effective_port}"
        threading.Thread(target=self.server.run, daemon=True).start()
        self.open = lambda: self.service.open(models, self.host)

    def post(self, path, body=None, **keywords):
        return requests.post(self.url + path, json=body, timeout=PATIENCE, **keywords)

    def get(self, path, **keywords):
        return requests.get(self.url + path, timeout=PATIENCE, **keywords)

    def connect(self, raw=b""):
        sock = socket.create_connection(("127.0.0.1", self.server.effective_port), PATIENCE)
        sock.sendall(raw)
        return sock

    def is_idle(self):
        return self.host.counts() == (0, 0)

    def stop(self):
        self.host.drain(0)
        flush(self.server)


@pytest.fixture(scope="module")
def make_server(runs, byte_tokenizer, tiny_model):
    """make_server(options, limits, n_slots): a Server of all models; stopped at the end."""
    servers = []

    def served(name, model, prompt_format):
        return Served(name, byte_tokenizer, prompt_format, model.config.block_size, 1, 7, 0)

    def make(options=None, limits=None, n_slots=4, loaded=True):
        engines, models = {}, {}
        for name, kind in (("sft", Engine), ("loop", SlowEngine), ("broken", BrokenEngine)):
            folder = runs / ("sft" if name == "sft" else "loop")
            model = checkpoint.load(folder).model
            engines[name] = kind(model, byte_tokenizer.n_vocab, n_slots)
            models[name] = served(name, model, "qa")
        for name in ("plain", "chat"):
            model = tiny_model(padded_vocab_size=byte_tokenizer.padded_vocab_size, block_size=BLOCK)
            engines[name] = Engine(model, byte_tokenizer.n_vocab, n_slots)
            models[name] = served(name, model, name)
        options = options or Options(limits=RequestLimits(max_tokens=10**6))
        servers.append(Server(engines, models, options, limits))
        if loaded:
            servers[-1].open()
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def api(make_server):
    return make_server()


@pytest.fixture
def client(api):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)


ASK = [{"role": "user", "content": "首都？"}]


def chat(**more):
    return dict(model="sft", messages=ASK, **more)


def events(response):
    """The data of a stream of server-sent events, [DONE] apart; each line as the format says."""
    found = []
    for line in response.content.decode().split("\n\n"):
        if line and not line.startswith(":"):
            assert line.startswith("data: ") and "\n" not in line
            found.append(line.removeprefix("data: "))
    assert found.pop() == "[DONE]"
    return [json.loads(each) for each in found]


def raw(path, body):
    """The bytes of a POST with JSON."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data
