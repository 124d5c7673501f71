"""A judge behind an OpenAI address: marks, the cache, faults."""

import pytest
from scripted_server import error, good

from minigpt.common.errors import UserError
from minigpt.rewards import judge as judging
from minigpt.rewards.expression import load_reward
from minigpt.rewards.judge import Judge, make_judge, mark_in


@pytest.mark.parametrize(
    "text, mark",
    [
        ("评分：8", 8),
        ("评分: 10", 10),
        ("评分：8/10", 8),
        ("想一想……先给 3。\n评分：7 分", 7),
        ("8", 8),
        ("我给 9 分。", 9),
        ("评分：11", 0),
        ("评分：0", 0),
        ("好", 0),
        ("", 0),
        ("7.5", 0),
    ],
)
def test_a_mark_is_read(text, mark):
    assert mark_in(text) == mark


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(judging, "PAUSE", 0.0)


def test_an_answer_is_judged_once(serve, no_proxy):
    server = serve(
        script=lambda asked: good("评分：8" if "回答：\n五" in asked.text else "评分：2")
    )
    reward = load_reward("judge+0.1*repetition", lambda: make_judge(server.base_url))
    items = [("黄河多长？", answer, {"answer": "五千多公里"}) for answer in ("五千", "三", "五千")]
    scores = reward.scores(items[:2]) + reward.scores(items)
    assert [score.parts["judge"] for score in scores] == [0.8, 0.2, 0.8, 0.2, 0.8]
    assert scores[0].total == pytest.approx(0.9)
    assert len(server.seen) == 2
    asked = server.seen[0].body
    assert asked["model"] == server.models[0] and asked["max_tokens"] == judging.MOST_TOKENS
    assert "参考答案：五千多公里" in asked["messages"][1]["content"]


def test_faults_that_pass_are_tried_again(serve, no_proxy, fast):
    actions = [error(503, "busy"), good("嗯"), good("评分：6")]
    server = serve(script=lambda asked: actions[asked.number - 1])
    assert make_judge(server.base_url)("问", "答", {}) == 0.6


def test_a_server_that_fails_stops_the_run_with_one_line(serve, no_proxy, fast):
    server = serve(script=lambda asked: error(503, "busy"))
    with pytest.raises(UserError, match=r"the judge does not answer .*--init_from=resume"):
        make_judge(server.base_url)("问", "答", {})
    assert len(server.seen) == judging.TRIES


def test_a_model_that_gives_no_marks_is_no_judge(monkeypatch):
    monkeypatch.setattr(judging, "SILENT", 3)
    judge = Judge(lambda messages: "好")
    assert [judge("问", answer, {}) for answer in "ab"] == [0, 0]
    with pytest.raises(UserError, match="no mark for 3 answers in a row"):
        judge("问", "c", {})


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(judging, "MOST_CACHED", 2)
    asked = []
    judge = Judge(lambda messages: asked.append(1) or "评分：5")
    for answer in "abcabc":
        judge("问", answer, {})
    assert len(asked) == 6
    judge("问", "c", {})
    assert len(asked) == 6


@pytest.mark.parametrize(
    "url, key_env, message",
    [
        ("", "", "--judge_url: missing"),
        ("ftp://x", "", "--judge_url: expected http"),
        ("localhost:1", "no key", "--judge_key_env: expected the NAME"),
        ("localhost:1", "NO_SUCH_VARIABLE", "the environment variable NO_SUCH_VARIABLE holds no"),
        ("localhost:1", "", "--judge_url=http://localhost:1: "),
    ],
)
def test_what_cannot_be_asked(no_proxy, url, key_env, message):
    with pytest.raises(UserError, match=message):
        make_judge(url, "", key_env)
