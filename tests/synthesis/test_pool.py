"""The pool: servers on real sockets that share the work, fail in all ways, die and come back."""

import contextlib
import itertools
import json
import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_server import ScriptedServer, error, garbage, good, half, reset, stall

from minigpt.common.errors import UserError
from minigpt.openai.client import Answer
from minigpt.openai.errors import QuestionRefused
from minigpt.synthesis.backoff import CircuitBreaker, ConcurrencyLimit, RetryPolicy
from minigpt.synthesis.pool import Pool, PoolClosed, Unreachable
from minigpt.synthesis.servers import Server, read_servers

PATIENCE = 20  # seconds: a generous deadline for what takes a fraction of one
KEY = "sk-very-secret-0123456789"
QUICK = RetryPolicy(pause=0.002, max_pause=0.02, down=0.01, max_down=0.05)
ASK = [{"role": "user", "content": "首都？"}]


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class FakeClock:
    """Waiting takes no time, and moves it on."""

    def __init__(self):
        self.time = 1000.0

    def now(self):
        return self.time

    def wait(self, condition, seconds):
        assert seconds is not None, "nobody would ever wake it"
        self.time += seconds


pytestmark = pytest.mark.usefixtures("no_proxy")


def pool_of(*servers, model="scripted", timeout=PATIENCE, policy=QUICK, **more):
    """(pool, what it warned of)."""
    news = []
    servers = [s if isinstance(s, Server) else Server(s.base_url) for s in servers]
    more = dict(warn=news.append, rng=random.Random(0), **more)
    return Pool(servers, model, timeout=timeout, policy=policy, **more), news


def in_threads(n, call):
    """[call(0), …, call(n - 1)] of n threads at once: what each returned or raised."""
    results = [None] * n

    def run(i):
        try:
            results[i] = call(i)
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    return results


# -- servers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("http://localhost:1234/v1", "http://localhost:1234/v1"),
        ("http://localhost:1234/v1/", "http://localhost:1234/v1"),
        ("http://localhost:1234", "http://localhost:1234/v1"),
        (" localhost:1234/ ", "http://localhost:1234/v1"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("[::1]:8080", "http://[::1]:8080/v1"),
        ("http://lab-pc:1234/v1/chat/completions", "http://lab-pc:1234/v1"),
        ("http://lab-pc:3000/api/chat/completions", "http://lab-pc:3000/api"),
        ("https://x.example.com/openai/chat/completions/", "https://x.example.com/openai"),
        ("https://openrouter.ai/api", "https://openrouter.ai/api/v1"),
        ("https://ark.example.com/api/v3/", "https://ark.example.com/api/v3"),
        ("https://g.example.com/v1beta/openai/", "https://g.example.com/v1beta/openai"),
        ("https://x.example.com/vision", "https://x.example.com/vision/v1"),
    ],
)
def test_addresses_as_people_type_them(typed, name):
    assert Server(typed).name == name


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("api.example.com/v1", "expected http:// or https://"),
        ("192.168.1.20:1234", "expected http:// or https://"),
        ("ftp://localhost", "expected http:// or https://"),
        ("http://me:secret@localhost/v1", "a user name or password"),
        ("http://localhost/v1?key=secret", "nothing may follow the path"),
        ("http://localhost:0/v1", "no address"),
        ("http://localhost:99999/v1", "no address"),
        ("http:///v1", "no address"),
        ("http://a b/v1", "no address"),
        ("", "expected http:// or https://"),
    ],
)
def test_what_is_no_address(typed, message):
    with pytest.raises(UserError) as caught:
        Server(typed)
    assert message in str(caught.value) and "secret" not in str(caught.value)


def test_keys_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("KEY_A", f" {KEY}\n")
    monkeypatch.setenv("KEY_B", "b")
    urls = ["http://a", "http://b"]

    def keys(*names):
        return [server.key for server in read_servers(urls, names)]

    assert keys() == [None, None]
    assert keys("KEY_A") == [KEY, KEY]
    assert keys("KEY_A", "KEY_B") == [KEY, "b"]
    assert keys("none", "KEY_B") == [None, "b"]
    assert KEY not in repr(read_servers(urls, ["KEY_A"]))
    same = read_servers(["http://a", "http://a"], ["KEY_A", "KEY_B"])
    assert [state.name for state in Pool(same).snapshot()] == ["http://a/v1 (1)", "http://a/v1 (2)"]


def test_all_errors_about_servers_are_reported_at_once(monkeypatch):
    monkeypatch.setenv("SPACED", f"{KEY} {KEY}")
    monkeypatch.delenv("ABSENT", raising=False)

    def problems(urls, names=()):
        with pytest.raises(UserError) as caught:
            read_servers(urls, names)
        assert KEY not in str(caught.value)
        return str(caught.value).split("\n")

    assert problems([]) == ["base_url: expected at least one, such as http://localhost:1234/v1"]
    assert problems(["a", "http://b", "http://c"], ["none", "ABSENT", "SPACED"]) == [
        "base_url: expected http:// or https://; expected one such as http://localhost:1234/v1",
        "api_key_env: the environment variable ABSENT is not set",
        "api_key_env: the environment variable SPACED holds no key (a space, or no ASCII)",
    ]
    assert problems(["http://a", "http://b", "http://c"], ["A", "B"]) == [
        "api_key_env: 2 names for 3 servers; expected none, one for all, or one for each (none "
        "where a server needs no key)"
    ]
    assert problems(["http://a"], [KEY]) == [
        "api_key_env: expected NAMES of environment variables, not the keys"
    ]
    assert problems(["http://a", "a", "http://a/v1/"])[-1] == "base_url: http://a/v1 is given twice"


@pytest.mark.parametrize("wrong", [dict(workers=0), dict(timeout=0), dict(patience=-1.0)])
def test_what_a_pool_cannot_be(wrong):
    with pytest.raises(UserError, match="expected more than 0"):
        Pool([Server("http://a")], **wrong)
    with pytest.raises(UserError, match="at least one server"):
        Pool([])


# -- a question ------------------------------------------------------------------------------------


def test_an_answer(serve):
    server = serve(good("北京。", finish_reason="length"))
    pool, news = pool_of(server)
    answer = pool.ask(ASK, temperature=0.45, max_tokens=50, schema={"type": "object"}, seed=7)
    assert isinstance(answer, Answer) and answer[:4] == ("北京。", True, 100, 3)
    assert answer.server == server.base_url
    wanted = {"name": "answer", "strict": True, "schema": {"type": "object"}}
    assert server.seen[0].body == {
        "model": "scripted",
        "messages": ASK,
        "stream": False,
        "temperature": 0.45,
        "max_tokens": 50,
        "seed": 7,
        "response_format": {"type": "json_schema", "json_schema": wanted},
    }
    pool.ask(ASK)
    assert server.seen[1].body == {"model": "scripted", "messages": ASK, "stream": False}
    assert pool.snapshot() == [(server.base_url, 0, 4, "up", 2, {})] and not news


def test_a_schema_where_the_server_takes_one(serve):
    server = serve(
        script=lambda asked: error(400, "json_schema?") if len(asked.body) > 3 else good("")
    )
    pool, news = pool_of(server)
    for _ in range(2):
        pool.ask(ASK, schema={})
    assert len(server.seen) == 3 and len(news) == 1
    pool, news = pool_of(server, structured=False)
    pool.ask(ASK, schema={})
    assert len(server.seen) == 4 and not news


def test_a_refused_question_is_one_question(serve):
    said = "maximum context length is 4096 tokens"
    server = serve(script=lambda asked: error(400, said) if asked.number == 1 else good("x"))
    pool, news = pool_of(server)
    with pytest.raises(QuestionRefused, match=f"{server.base_url}: 400 {said}"):
        pool.ask(ASK)
    assert pool.ask(ASK).text == "x" and len(server.seen) == 2 and not news


# -- trying again ----------------------------------------------------------------------------------

FAULTS = {
    "429": error(429, "slow"),
    "500": error(500, "boom"),
    "503": error(503, "loading"),
    "408": error(408, "slow"),
    "garbage": garbage(),
    "half": half(),
    "reset": reset(),
}


def timed(clock, actions, then=None):
    """(a script that does `actions` and then `then`, the times at which it was asked)."""
    times = []

    def script(asked):
        times.append(clock.time)
        return actions[asked.number - 1] if asked.number <= len(actions) else then or good("x")

    return script, times


def gaps(times):
    return [later - earlier for earlier, later in itertools.pairwise(times)]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_is_asked_again(serve, fault):
    server = serve(script=lambda asked: good("x") if asked.number > 2 else FAULTS[fault])
    pool, news = pool_of(server)
    assert pool.ask(ASK).text == "x" and len(server.seen) == 3 and not news
    ((*_, n, failures),) = pool.snapshot()
    assert n == 3 and list(failures.values()) == [2]


def test_a_timeout_is_asked_again(serve):
    server = serve(script=lambda asked: good("x") if asked.number > 1 else stall())
    pool, _ = pool_of(server, timeout=0.4)
    assert pool.ask(ASK).text == "x"
    assert pool.snapshot()[0].failures == {"timeout": 1}


def test_pauses_are_random_up_to_one_that_doubles(serve):
    clock, policy = FakeClock(), RetryPolicy(pause=0.5, max_pause=3.0, down_after=99)
    script, times = timed(clock, [FAULTS["500"]] * 6)
    pool, _ = pool_of(serve(script=script), clock=clock, policy=policy)
    pool.ask(ASK)
    rng = random.Random(0)
    expected = [rng.uniform(0, longest) for longest in (0.5, 1, 2, 3, 3, 3)]
    assert gaps(times) == pytest.approx(expected)


@pytest.mark.parametrize(("asked_for", "pause"), [("7", 7.0), ("86400", 300.0), ("0", 0.0)])
def test_retry_after_is_honoured(serve, asked_for, pause):
    clock = FakeClock()
    script, times = timed(clock, [error(429, "slow", {"Retry-After": asked_for})])
    pool, _ = pool_of(serve(script=script), clock=clock)
    pool.ask(ASK)
    (gap,) = gaps(times)
    assert pause - 1e-6 <= gap <= pause + QUICK.pause


def test_retry_after_is_for_the_whole_server(serve):
    clock = FakeClock()
    slow = serve(error(429, "slow", {"Retry-After": "50"}))
    other = serve(good("x"))
    pool, _ = pool_of(slow, other, clock=clock)
    for _ in range(6):
        pool.ask(ASK)
    assert len(slow.seen) == 1 and len(other.seen) == 6
    assert [state.state for state in pool.snapshot()] == ["paused", "up"]
    clock.time += 50
    for _ in range(2):
        pool.ask(ASK)
    assert len(slow.seen) == 2


def test_a_question_that_waits_holds_no_place(serve):
    class Longest(random.Random):
        def uniform(self, a, b):
            return b

    server = serve(script=lambda asked: error(500, "x") if asked.number == 1 else good(asked.text))
    policy = RetryPolicy(pause=0.5)
    pool = Pool([Server(server.base_url)], "scripted", workers=1, policy=policy, rng=Longest())
    order = []

    def ask(i):
        if i:
            until(lambda: len(server.seen) == 1 and not pool.snapshot()[0].in_flight)
        order.append(pool.ask([{"role": "user", "content": str(i)}]).text)

    in_threads(2, ask)
    assert order == ["1", "0"]


def test_what_fails_here_may_be_answered_there(serve):
    bad, well = serve(error(500, "boom")), serve(good("x"))
    pool, news = pool_of(bad, well, policy=RetryPolicy(pause=0.001, down=60.0))
    for _ in range(8):
        assert pool.ask(ASK).server == well.base_url
    assert len(bad.seen) == 5 and pool.snapshot()[0].state == "down"  # five in a row
    assert news == [f"{bad.base_url}: 500 boom; it is not asked for a while"]


# -- whose fault it is -----------------------------------------------------------------------------


def faulty_for(text, fault):
    """A script that fails for one question, and answers all others."""
    return lambda asked: fault if asked.text == text else good("x")


def test_a_question_that_always_fails_is_given_up(serve):
    # Alone: whether the server is well, only a question of the pool's own tells.
    server = serve(script=faulty_for("首都？", FAULTS["500"]))
    pool, _ = pool_of(server, clock=FakeClock())
    with pytest.raises(QuestionRefused, match=r"500 boom \(failure 20; others were answered\)"):
        pool.ask(ASK)
    pings = [asked.body for asked in server.seen if asked.text == "1"]
    assert len(pings) == 10 and pings[0]["max_tokens"] == 1 and pings[0]["model"] == "scripted"
    assert pool.ask([{"role": "user", "content": "别的？"}]).text == "x"


def test_a_question_that_always_fails_is_given_up_among_others(serve):
    server = serve(script=faulty_for("首都？", FAULTS["garbage"]))
    pool, _ = pool_of(server, workers=2)
    done = threading.Event()

    def ask(i):
        if i:
            while not done.is_set():
                pool.ask([{"role": "user", "content": "别的？"}])
            return None
        with contextlib.ExitStack() as stack:
            stack.callback(done.set)
            return pool.ask(ASK)

    refused, _ = in_threads(2, ask)
    assert isinstance(refused, QuestionRefused)


def test_a_server_that_was_away_blames_nobody(serve):
    script, times = timed(FakeClock(), [FAULTS["500"]] * 60)
    pool, _ = pool_of(serve(script=script), clock=FakeClock())
    assert pool.ask(ASK).text == "x"


def test_a_server_that_has_too_much_to_do_blames_nobody(serve):
    left = iter([FAULTS["429"]] * 30)
    lock = threading.Lock()

    def script(asked):
        with lock:
            return next(left, good("x")) if asked.text == "首都？" else good("x")

    pool, _ = pool_of(serve(script=script), workers=2)
    done = threading.Event()

    def ask(i):
        while i and not done.is_set():
            pool.ask([{"role": "user", "content": "别的？"}])
        try:
            return pool.ask(ASK).text
        finally:
            done.set()

    assert in_threads(2, ask) == ["x", "x"]


# -- refusals --------------------------------------------------------------------------------------


def numbered(i):
    return [{"role": "user", "content": f"第{i}问？"}]


def ask_many(pool, n):
    """What each of n questions, one after the other, returns or raises."""
    found = []
    for i in range(n):
        try:
            found.append(pool.ask(numbered(i)).text)
        except UserError as caught:
            found.append(caught)
    return found


def test_ten_refusals_for_one_reason_take_a_server_out(serve):
    server = serve(script=lambda asked: error(400, f"no se puede ({asked.number}7)"))
    pool, news = pool_of(server)
    *first, tenth = ask_many(pool, 10)
    assert {type(caught) for caught in first} == {QuestionRefused} and type(tenth) is UserError
    assert str(tenth).startswith(f"{server.base_url}: it refused 10 questions in a row for one")
    assert "no se puede" in str(tenth) and "--extra_body" in str(tenth)
    assert pool.snapshot()[0].state == "out" and len(server.seen) == 10 and not news


def test_refusals_for_several_reasons_or_with_answers_between_do_not(serve):
    def script(asked):
        if asked.number % 10 == 0:
            return good("x")
        return error(400, "no" if asked.number % 10 < 6 else "ne")

    pool, _ = pool_of(serve(script=script))
    found = ask_many(pool, 40)
    assert found.count("x") == 4 and pool.snapshot()[0].state == "up"


def test_what_moderation_refuses_is_not_counted_nor_what_was_refused_before(serve):
    server = serve(error(400, "content_filter"))
    pool, _ = pool_of(server)
    assert {type(caught) for caught in ask_many(pool, 25)} == {QuestionRefused}
    server.script = lambda asked: error(400, "no se puede")
    for i in range(25):
        with pytest.raises(QuestionRefused, match="no se puede"):
            pool.ask(numbered(i), refused_before=True)
    assert pool.snapshot()[0].state == "up"


def test_a_refused_question_is_asked_elsewhere(serve):
    bad, well = serve(error(400, "content_filter")), serve(good("x"))
    pool, news = pool_of(bad, well)
    assert ask_many(pool, 6) == ["x"] * 6 and 0 < len(bad.seen) <= 6 and not news
    well.script = lambda asked: error(400, "moderation")
    with pytest.raises(QuestionRefused):
        pool.ask(ASK)
    assert bad.seen[-1].text == well.seen[-1].text == "首都？"


def test_a_refused_question_does_not_wait_for_a_server_that_is_down(serve):
    bad, dead = serve(error(400, "content_filter")), serve(good("x"))
    dead.die()
    policy = RetryPolicy(pause=0.002, max_pause=0.01, down_after=1, down=60.0)
    pool, _ = pool_of(bad, dead, policy=policy)
    for caught in ask_many(pool, 3):
        assert isinstance(caught, QuestionRefused) and "content_filter" in str(caught)


def test_a_question_waits_for_another_server_where_the_one_that_refused_it_is_out(serve):
    bad, other = serve(error(400, "no se puede")), serve(FAULTS["500"])
    policy = RetryPolicy(pause=0.002, max_pause=0.01, down_after=1, down=0.05, max_down=0.05)
    pool, news = pool_of(bad, other, policy=policy, workers=1)

    def ask(i):
        if i == 0:
            until(lambda: pool.snapshot()[0].state == "out")
            other.script = lambda asked: good("x")
            return None
        return ask_many(pool, 20)

    _, found = in_threads(2, ask)
    assert found[-1] == "x" and any("in a row for one reason" in text for text in news)


def test_answers_in_flight_decide_on_a_streak_of_refusals(serve):
    release = threading.Event()

    def script(asked):
        return held(release) if asked.text == "首都？" else error(400, "no se puede")

    server = serve(script=script)
    pool, _ = pool_of(server, workers=4)

    def ask(i):
        if i == 0:
            return pool.ask(ASK).text
        until(lambda: server.in_flight)
        if i == 1:
            return ask_many(pool, 11)
        until(lambda: len(server.seen) == 11 and pool.snapshot()[0].in_flight == 1)
        if i == 2:
            return ask_many(pool, 1)
        time.sleep(0.1)
        asked = len(server.seen)
        release.set()
        return asked

    text, found, _, asked = in_threads(4, ask)
    assert text == "x" and asked == 11  # no more was asked before the answer decided
    assert {type(caught) for caught in found} == {QuestionRefused} and len(found) == 11
    assert pool.snapshot()[0].state == "up"


def test_keys_of_one_address(serve):
    """Moderation is that of the address; a field that one learns to leave out is left out by all;
    another refusal may be a matter of the key."""

    def script(asked):
        if "seed" in asked.body:
            return error(400, "seed?")
        if asked.text == "首都？":
            return error(400, "content_filter")
        return error(400, "ne") if asked.headers["authorization"].endswith("-1") else good("x")

    server = serve(script=script)
    pool, news = pool_of(*(Server(server.base_url, f"key-{i}") for i in range(4)))
    assert pool.ask(numbered(0), seed=7).text == "x" and len(news) == 1
    with pytest.raises(QuestionRefused, match="content_filter"):
        pool.ask(ASK)
    assert [asked.text for asked in server.seen].count("首都？") == 1
    assert ask_many(pool, 60) == ["x"] * 60 and len(news) == 2 and "in a row" in news[1]


def test_extra_fields_are_in_every_request(serve):
    server = serve(good("x"), lists_models=False)
    pool, _ = pool_of(server, extra={"enable_thinking": False})
    pool.check()
    pool.ask(ASK)
    assert [asked.body["enable_thinking"] for asked in server.seen] == [False, False]


# -- how much a server gets ------------------------------------------------------------------------


def test_a_limit_grows_by_answers_and_halves():
    limit = ConcurrencyLimit(3, 5)
    ns = []
    for _ in range(12):
        limit.answered()
        ns.append(limit.n)
    assert ns == [3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5]
    limit.overloaded(began=1.0, now=2.0)
    assert limit.n == 2
    limit.overloaded(began=1.5, now=3.0)  # was on its way when it was halved
    assert limit.n == 2
    limit.answered()
    limit.overloaded(began=2.5, now=3.0)
    assert limit.n == 1
    limit.overloaded(began=4.0, now=5.0)
    assert limit.n == 1
    limit.answered()
    assert limit.n == 2


@given(st.integers(1, 9), st.lists(st.booleans(), max_size=60))
def test_a_limit_stays_in_its_bounds(most, events):
    limit = ConcurrencyLimit(most, most)
    for now, is_answer in enumerate(events):
        before = limit.n
        limit.answered() if is_answer else limit.overloaded(now - 0.5, now)
        assert 1 <= limit.n <= most
        assert limit.n in (before, before + 1) if is_answer else limit.n == max(1, before // 2)


def test_the_shares_at_the_start(serve):
    pool, _ = pool_of(*(Server(f"http://{name}") for name in "ab"), workers=5)
    assert [state.limit for state in pool.snapshot()] == [3, 3]


def test_a_server_never_has_more_than_its_limit(serve):
    server = serve(script=lambda asked: good("x") if asked.number > 2 else FAULTS["503"])
    pool, _ = pool_of(server, workers=6)
    pool.ask(ASK)
    assert pool.snapshot()[0].limit == 2  # from 6 to 3, to 1, and one more for the answer
    server.script = lambda asked: good("x", after=0.1)
    in_threads(3, lambda i: pool.ask(ASK))
    assert server.most_in_flight <= 2 and pool.snapshot()[0].limit == 3
    in_threads(6, lambda i: pool.ask(ASK))
    assert server.most_in_flight < 6


def held(release):
    """An action: an answer, as soon as the Event is set."""
    return lambda reply: (release.wait(PATIENCE), good("x")(reply))


def meanwhile(slow, pool, call):
    """What call() returns while the server is busy with its first question."""
    release = threading.Event()
    slow.script = lambda asked: held(release) if asked.number == 1 else good("x")

    def run(i):
        if not i:
            return pool.ask(ASK)
        until(lambda: slow.in_flight)
        try:
            return call()
        finally:
            release.set()

    return in_threads(2, run)[1]


def test_who_has_something_to_do_is_asked_later(serve):
    slow, idle = serve(), serve(good("x"))
    pool, _ = pool_of(slow, idle)
    meanwhile(slow, pool, lambda: [pool.ask(ASK) for _ in range(6)])
    assert (len(slow.seen), len(idle.seen)) == (1, 6)


def test_where_it_failed_is_asked_later_than_who_has_something_to_do(serve):
    slow, bad = serve(), serve(FAULTS["500"])
    pool, _ = pool_of(slow, bad)
    answer = meanwhile(slow, pool, lambda: pool.ask(ASK))
    assert answer.server == slow.base_url
    assert (len(slow.seen), len(bad.seen)) == (2, 1)


def test_work_goes_to_the_least_busy(serve):
    slow, quick = serve(good("x", after=0.15)), serve(good("x", after=0.01))
    pool, _ = pool_of(slow, quick, workers=4)
    in_threads(4, lambda i: [pool.ask(ASK) for _ in range(10)])
    assert len(slow.seen) < 15 and len(slow.seen) + len(quick.seen) == 40
    assert slow.most_in_flight <= 3


def test_equals_take_turns(serve):
    servers = [serve(good("x")) for _ in range(3)]
    pool, _ = pool_of(*servers)
    order = [pool.ask(ASK).server for _ in range(9)]
    assert order == [server.base_url for server in servers] * 3


def test_a_server_that_is_overloaded_gets_less_and_then_more(serve):
    room, lock = 2, threading.Lock()

    def script(asked):
        with lock:
            return good("x", after=0.01) if server.in_flight <= room else error(503, "busy")

    server = serve(script=script)
    pool, _ = pool_of(server, workers=8, policy=RetryPolicy(pause=0.002, max_pause=0.02, down=0.01))
    assert pool.snapshot()[0].limit == 8
    limits = []

    def ask(i):
        for _ in range(15):
            pool.ask(ASK)
            limits.append(pool.snapshot()[0].limit)

    assert not any(in_threads(8, ask))
    assert min(limits) <= room
    assert sorted(limits)[len(limits) // 2] <= 2 * room  # it settles about there
    room = 8
    in_threads(8, ask)
    assert pool.snapshot()[0].limit == 8


# -- servers that are down -------------------------------------------------------------------------


def test_a_breaker_by_hand():
    breaker = CircuitBreaker(RetryPolicy(down_after=2, down=1.0, max_down=3.0))
    assert breaker.admits(0) and breaker.enter() is False
    assert breaker.failed(0, False) is False and breaker.admits(0)
    assert breaker.failed(10, False) is True  # two in a row
    assert not breaker.admits(10.9) and breaker.admits(11)
    assert breaker.failed(10.5, False) is False and breaker.until == 11  # it was sent before
    assert breaker.enter() is True
    assert not breaker.admits(11), "one probe at a time"
    assert breaker.failed(11, True) is False and breaker.until == 13
    assert breaker.enter() is True and breaker.failed(13, True) is False
    assert breaker.until == 16, "no pause is longer"
    assert breaker.enter() is True
    breaker.left(True)
    assert breaker.admits(16), "what ends without a word is no probe"
    assert breaker.enter() is True and breaker.answered() is True
    assert breaker.is_closed and breaker.answered() is False
    assert breaker.failed(20, False) is False and breaker.answered() is False
    assert breaker.failed(20, False) is False, "not in a row"
    assert breaker.failed(20, False) is True and breaker.until == 21


def test_a_server_that_is_down_is_probed_more_and_more_rarely(serve):
    clock = FakeClock()
    script, times = timed(clock, [FAULTS["500"]] * 9)
    policy = RetryPolicy(pause=0, down=1.0, max_down=10.0)
    pool, news = pool_of(serve(script=script), clock=clock, policy=policy)
    pool.ask(ASK)
    assert gaps(times) == pytest.approx([0, 0, 0, 0, 1, 2, 4, 8, 10])
    assert [text.split(": ", 1)[1] for text in news] == [
        "500 boom; it is not asked for a while",
        "it answers again",
    ]


def test_one_question_at_a_time_finds_out(serve):
    server = serve(FAULTS["500"])
    pool, _ = pool_of(server, policy=RetryPolicy(pause=0.001, max_pause=0.01, down=0.05))

    def look(i):
        # Nothing that was sent before it was down is on its way any more.
        until(lambda: (state := pool.snapshot()[0]).state == "down" and not state.in_flight)
        release = threading.Event()
        server.script = lambda asked: held(release)
        until(lambda: pool.snapshot()[0].state == "probing" and server.in_flight)
        time.sleep(0.1)  # all pauses of the others are over
        found = pool.snapshot()[0].state, server.in_flight
        release.set()
        return found

    results = in_threads(5, lambda i: look(i) if i == 4 else pool.ask(ASK).text)
    assert results == ["x"] * 4 + [("probing", 1)]
    assert pool.snapshot()[0].state == "up"


def test_a_server_dies_and_comes_back(serve):
    server = serve(good("x", after=0.02))
    pool, news = pool_of(server, patience=PATIENCE)
    answers = []

    def ask(i):
        for _ in range(25):
            answers.append(pool.ask(ASK).text)

    def fell(i):
        until(lambda: len(answers) >= 10)
        server.die()
        until(lambda: pool.snapshot()[0].state in ("down", "probing"))
        n = len(answers)
        time.sleep(0.1)
        assert len(answers) == n
        server.revive()

    assert not any(in_threads(5, lambda i: fell(i) if i == 4 else ask(i)))
    assert answers == ["x"] * 100
    assert news[-1].endswith("it answers again")


def test_a_question_that_nobody_can_send_was_no_probe(serve):
    clock, messages = FakeClock(), [*ASK]

    def script(asked):
        if asked.number == 5:
            messages.append(object())  # no JSON: the next one, the probe, is never sent
        return FAULTS["500"] if asked.number <= 5 else good("x")

    pool, _ = pool_of(serve(script=script), clock=clock)
    with pytest.raises(TypeError):
        pool.ask(messages)
    assert pool.snapshot()[0][1:4] == (0, 4, "down")
    assert pool.ask(ASK).text == "x"


def test_any_answer_ends_an_outage(serve):
    clock = FakeClock()

    def script(asked):
        clock.time += 100
        return faulty_for("首都？", FAULTS["500"])(asked)

    pool, _ = pool_of(serve(script=script), clock=clock, patience=1500)
    with pytest.raises(QuestionRefused):
        pool.ask(ASK)
    assert clock.time > 4000


def test_nobody_answers(serve):
    clock = FakeClock()
    down = serve(error(500, "boom"))
    dead = serve(good("x"))
    dead.die()
    pool, _ = pool_of(down, dead, clock=clock, policy=RetryPolicy(), patience=3600.0)
    with pytest.raises(Unreachable) as caught:
        pool.ask(ASK)
    lines = str(caught.value).split("\n")
    assert lines[0].startswith("no server has answered for 3600 s") and "run it again" in lines[0]
    assert lines[1:] == [
        f"{down.base_url}: 500 boom",
        f"{dead.base_url}: refused: nothing listens there; is the server running?",
    ]
    assert 3600 <= clock.time - 1000 < 3601
    assert len(down.seen) < 100, "it is not hammered"
    dead.revive()
    clock.time += 5000  # nothing was asked meanwhile: that is no outage
    assert pool.ask(ASK).text == "x"


# -- what ends a run -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (error(401, "no such key"), "it wants a key"),
        (error(403, "not yours"), "it wants a key"),
        (error(402, "Insufficient Balance"), "it wants to be paid"),
        (
            error(404, "The model `scripted` does not exist"),
            "it has no model scripted, but scripted",
        ),
    ],
)
def test_a_useless_server_ends_the_run_at_once(serve, action, message):
    server = serve(action)
    pool, news = pool_of(server)
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            pool.ask(ASK)
        assert str(caught.value).startswith(f"{server.base_url}: {message}")
        assert not isinstance(caught.value, (QuestionRefused, PoolClosed, Unreachable))
    assert len(server.seen) == 1 and not news and pool.snapshot()[0].state == "out"


def test_a_useless_server_ends_it_for_those_that_wait_too(serve):
    server = serve(error(401, "no", after=0.1))
    pool, _ = pool_of(server, workers=1)
    results = in_threads(4, lambda i: pool.ask(ASK))
    assert len(server.seen) == 1 and {type(result) for result in results} == {UserError}


def test_one_useless_server_among_others(serve):
    good_one = serve(good("x", after=0.01), key=KEY)
    bad, also_bad = Server(good_one.base_url, "wrong-key"), Server(good_one.base_url)
    pool, news = pool_of(bad, Server(good_one.base_url, KEY))
    in_threads(4, lambda i: [pool.ask(ASK) for _ in range(5)])
    assert len(good_one.seen) == 20
    first, *more = news
    assert first.startswith(f"{good_one.base_url} (1): it refuses the key (401 ") and not more
    assert first.endswith("it is not asked any more") and "wrong-key" not in first
    pool, news = pool_of(bad, also_bad)
    with pytest.raises(UserError) as caught:
        pool.ask(ASK)
    assert len(str(caught.value).split("\n")) == 2 and len(news) == 1


def test_close_wakes_who_waits_and_lets_the_others_finish(serve):
    release = threading.Event()
    server = serve(held(release))
    pool, _ = pool_of(server, workers=1)

    def ask(i):
        if i == 4:
            until(lambda: server.in_flight)
            pool.close()
            return release.set()
        try:
            return pool.ask(ASK).text
        except PoolClosed:
            return PoolClosed

    *results, _ = in_threads(5, ask)
    assert sorted(map(str, results)) == sorted(map(str, ["x", PoolClosed, PoolClosed, PoolClosed]))
    with pytest.raises(PoolClosed):
        pool.ask(ASK)
    pool.close()


def test_close_ends_waits_of_any_length(serve):
    server = serve(error(429, "slow", {"Retry-After": "300"}))
    pool, _ = pool_of(server)

    def ask(i):
        if i == 3:
            until(lambda: (state := pool.snapshot()[0]).state == "paused" and not state.in_flight)
            time.sleep(0.1)  # their own pauses are over
            return pool.close()
        return pool.ask(ASK)

    assert [type(result) for result in in_threads(4, ask)] == [PoolClosed] * 3 + [type(None)]


# -- before the first question ---------------------------------------------------------------------


def test_check_finds_the_only_model(serve):
    server = serve(good("x"), models=("qwen", "text-embedding-nomic"))
    pool, news = pool_of(server, server_named(server), model=None)
    with pytest.raises(UserError, match=r"expected a name, or check\(\)"):
        pool.ask(ASK)
    pool.check()
    assert pool.model == "qwen" and pool.ask(ASK).text == "x" and not news


def server_named(server):
    """The same server by another name."""
    return Server(server.base_url, "any-key")


@pytest.mark.parametrize(
    ("models", "message"),
    [(("a", "b"), "model: expected its name; there is a, b"), ((), "there is none")],
)
def test_check_cannot_choose_a_model(serve, models, message):
    pool, _ = pool_of(serve(good("x"), models=models), model=None)
    with pytest.raises(UserError, match=message):
        pool.check()


def test_check_tells_an_unknown_model(serve):
    server = serve(good("x"), models=("qwen", "glm"))
    pool, _ = pool_of(server, model="gpt")
    with pytest.raises(UserError) as caught:
        pool.check()
    assert str(caught.value).startswith(
        f"{server.base_url}: it has no model gpt, but qwen, glm (404"
    )
    assert not server.seen


def test_a_list_of_models_may_lack_one(serve):
    server = serve(error(400, "max_tokens must be more than 1"), lists_models=False)
    pool, news = pool_of(server)
    pool.check()
    assert len(server.seen) == 1 and not news and pool.snapshot()[0].state == "up"


def test_check_tells_a_wrong_key_and_who_is_not_there(serve):
    keyed, dead, well = serve(good("x"), key=KEY), serve(good("x")), serve(good("x"))
    dead.die()
    pool, _ = pool_of(Server(keyed.base_url, "wrong-key"), dead)
    with pytest.raises(UserError) as caught:
        pool.check()
    lines = str(caught.value).split("\n")
    assert lines[0].startswith(f"{keyed.base_url}: it refuses the key (401 Incorrect API key")
    assert lines[1].startswith(f"{dead.base_url}: refused") and "wrong-key" not in lines[0]

    pool, news = pool_of(Server(keyed.base_url, "wrong-key"), dead, well)
    pool.check()
    assert [text.rpartition("; ")[2] for text in news] == ["the other servers go on without it"] * 2
    assert [state.state for state in pool.snapshot()] == ["out", "up", "up"]
    assert pool.ask(ASK).text == "x"


def test_check_tells_what_is_no_api(serve):
    server = serve(good("x"), lists_models=False)
    pool, _ = pool_of(Server(server.base_url + "/elsewhere"))
    with pytest.raises(UserError, match="no model scripted, or no OpenAI API at this address"):
        pool.check()


# -- all together ----------------------------------------------------------------------------------


def test_the_key_is_in_no_output(serve):
    def script(asked):
        return error(400 + asked.number % 3, f"with {json.dumps(asked.headers)}")

    pool, news = pool_of(*(Server(serve(script=script).base_url, KEY) for _ in range(3)))
    texts = [repr(pool), repr(pool.snapshot())]
    for _ in range(4):
        try:
            pool.ask(ASK)
        except UserError as caught:
            texts += [str(caught), repr(caught)]
    assert len(texts) > 4 and news and KEY not in "".join(texts + news + [repr(pool.snapshot())])


@settings(max_examples=25)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.lists(st.sampled_from(["good", *FAULTS]), min_size=1, max_size=25),
    st.integers(0, 99),
)
def test_never_more_than_workers(workers, n_servers, plan, seed):
    """Several servers at one address, so that one counts what they have in all."""

    def script(asked):
        name = plan[asked.number - 1] if asked.number <= len(plan) else "good"
        return good("x", after=0.001) if name == "good" else FAULTS[name]

    with ScriptedServer(script) as server:
        servers = [Server(server.base_url, f"key-{i}") for i in range(n_servers)]
        more = dict(workers=workers, warn=lambda text: None, rng=random.Random(seed))
        policy = RetryPolicy(pause=0.001, max_pause=0.004, down=0.001, max_down=0.004)
        pool = Pool(servers, "scripted", timeout=PATIENCE, policy=policy, **more)
        results = in_threads(8, lambda i: [pool.ask(ASK).text for _ in range(2)])
        pool.close()
    assert results == [["x", "x"]] * 8
    assert server.most_in_flight <= workers
    states = pool.snapshot()
    assert sum(state.requests for state in states) == len(server.seen)
    faults = sum(name != "good" for name in plan[: len(server.seen)])
    assert sum(sum(state.failures.values()) for state in states) == faults
    assert all(not state.in_flight and 1 <= state.limit <= workers for state in states)


def test_many_questions_and_one_failure_in_five(serve):
    rng, lock = random.Random(1), threading.Lock()

    def script(asked):
        with lock:
            is_fault = rng.random() < 0.2
            return FAULTS[rng.choice(list(FAULTS))] if is_fault else good(asked.text, after=0.002)

    server = serve(script=script)
    servers = [Server(server.base_url, f"key-{i}") for i in range(2)]
    pool, _ = pool_of(*servers, workers=8)
    texts = [[f"{i}-{n}" for n in range(25)] for i in range(20)]
    asked = in_threads(
        20, lambda i: [pool.ask([{"role": "user", "content": t}]).text for t in texts[i]]
    )
    assert asked == texts
    assert server.most_in_flight <= 8
    assert len(server.seen) == 500 + sum(sum(s.failures.values()) for s in pool.snapshot())
