"""sft/sft_generate.py with servers that fail in every way: a fault of a server is never a fault of
an entry, no half sentence becomes a pair, and the judge."""

import json
import os
import re

import garden
import pytest
from local_server import serve_runs
from pair_work import (
    FAULTS,
    FaultsInTurn,
    Work,
    check_whole,
    cut,
    lines,
    serving,
    survive,
    writer,
)
from scripted_server import ScriptedServer, body, error, good
from tiny_run import save_scripted_run, write_jsonl

pytestmark = pytest.mark.usefixtures("no_proxy")


@pytest.fixture
def work(tmp_path):
    """work(n): a Work with garden's entries 0 … n − 1."""

    def make(n):
        made = Work(tmp_path)
        garden.write_entries(made.input, n)
        return made

    return make


def first(n, fault):
    """A server that fails n times, then answers."""
    return lambda asked: fault(asked) if asked.number <= n else writer(asked)


def about(title, fault):
    """A server that fails for one entry."""

    def answer(asked):
        is_it = garden.title_in(asked.body["messages"]) == title
        return fault(asked) if is_it else writer(asked)

    return answer


# -- faults that concern every question ------------------------------------------------------------


@pytest.mark.parametrize("fault", ["unknown", "context"])
def test_ten_refusals_for_one_reason_stop_the_run_and_mark_nothing(work, fault):
    work = work(40)
    with ScriptedServer(FAULTS[fault]) as server:
        code, out, err = work.run(server)
        assert code == 2 and 10 <= len(server.seen) <= 13  # four are asked at a time
        assert "questions in a row for one reason" in err and "400 " in err
        assert ("--text_max" if fault == "context" else "--extra_body") in err
        assert work.progress == [] and work.rejects == [] and work.pairs == []
        assert "asks them again" in out
        server.script = writer
        assert work.run(server)[0] == 0
    check_whole(work, 40, {"done": 40})


def test_the_server_breaks_in_the_midst(work):
    work = work(60)
    with ScriptedServer(lambda a: writer(a) if a.number <= 20 else FAULTS["unknown"](a)) as server:
        assert work.run(server)[0] == 2
        assert len(work.progress) == 20 and {p["outcome"] for p in work.progress} == {"done"}
        server.script = writer
        assert work.run(server)[0] == 0
    check_whole(work, 60, {"done": 60})


def test_slow_answers_in_flight_speak_for_a_server(work):
    """Refusals are quick. Ten in a row mean nothing while an answer is on its way."""
    work = work(30)
    well = {garden.entry(i)["title"] for i in (0, 14, 29)}

    def answer(asked):
        messages = asked.body["messages"]
        if garden.title_in(messages) in well:
            return good(garden.reply(messages), after=0.3)
        return error(400, "no se puede")

    with ScriptedServer(answer) as server:
        code, _, err = work.run(server, "--workers=2", "--min_success=0")
    assert code == 0, err
    check_whole(work, 30, {"done": 3, "refused": 27})


def test_what_was_refused_is_asked_again_and_stops_no_run(work):
    """Twelve entries that one server will never take: the same command gets beyond them."""
    work = work(30)
    never = {garden.entry(i)["title"] for i in range(0, 24, 2)}

    def answer(asked):
        is_bad = garden.title_in(asked.body["messages"]) in never
        return error(400, "no se puede") if is_bad else writer(asked)

    with ScriptedServer(answer) as server:
        assert work.run(server, "--workers=1")[0] == 0
        check_whole(work, 30, {"done": 18, "refused": 12})
        garden.write_entries(work.input, 33)
        code, out, err = work.run(server, "--workers=1")
        assert code == 0 and "12 entries that were refused are asked again" in err
        assert "refused: 12 entries; the same command asks them again" in out
        check_whole(work, 33, {"done": 21, "refused": 12})
        server.script = writer
        assert work.run(server, "--workers=1")[0] == 0
    check_whole(work, 33, {"done": 33})


@pytest.mark.parametrize("fault", ["quota", "credit", "key"])
def test_no_credit_and_no_key_stop_at_once(work, fault):
    work = work(40)
    with ScriptedServer(first(30, FAULTS[fault])) as server:
        code, _, err = work.run(server)
        assert code == 2 and len(server.seen) <= 4 and work.progress == []
        assert re.search("it wants (to be paid|a key)", err)
        server.script = writer
        assert work.run(server)[0] == 0
    check_whole(work, 40, {"done": 40})


@pytest.mark.parametrize("fault", ["unloaded", "crashed", "busy, in Chinese", "gateway", "a page"])
def test_a_bad_moment_costs_nothing(work, fault):
    work = work(12)
    with serving(first(6, FAULTS[fault])) as server:
        code, _, err = work.run(server)
        assert code == 0, err
    check_whole(work, 12, {"done": 12})


@pytest.mark.parametrize("field", ["temperature", "top_p", "seed", "response_format", "max_tokens"])
def test_a_parameter_that_is_refused_is_left_out(work, field):
    work = work(8)
    no = error(400, f"Unsupported parameter: '{field}' is not supported with this model.")
    with ScriptedServer(lambda a: no if field in a.body else writer(a)) as server:
        code, _, err = work.run(server, "--top_p=0.9", "--seed=3", "--workers=1")
        assert code == 0 and err.count("it does not take") == 1 and field in err
        assert len(server.seen) == 9 and field not in server.seen[-1].body
    check_whole(work, 8, {"done": 8})


def test_extra_body(work):
    work = work(3)

    def answer(asked):
        is_off = asked.body.get("enable_thinking") is False
        wants = "parameter.enable_thinking must be set to false for non-streaming calls"
        return writer(asked) if is_off else error(400, wants)

    with ScriptedServer(answer) as server:
        code, _, err = work.run(server, '--extra_body={"enable_thinking": false, "top_k": 20}')
        assert code == 0, err
        assert server.seen[0].body["top_k"] == 20
    check_whole(work, 3, {"done": 3})


@pytest.mark.parametrize("fault", ["unknown", "context", "quota", "moderation", "forbidden"])
def test_another_server_is_asked_before_an_entry_is_given_up(work, fault):
    work = work(80)
    with ScriptedServer(FAULTS[fault]) as bad, ScriptedServer(writer) as well:
        urls = f"--base_url={bad.base_url},{well.base_url}"
        code, _, err = work.run(well, urls)
        assert code == 0, err
        stops = fault != "moderation"
        assert ("is not asked any more" in err) == stops
        assert len(bad.seen) < 16 or not stops
    check_whole(work, 80, {"done": 80})


def test_moderation_of_one_entry_is_the_entry_s(work):
    work = work(15)
    with ScriptedServer(about(garden.entry(4)["title"], FAULTS["moderation"])) as server:
        assert work.run(server)[0] == 0
        check_whole(work, 15, {"done": 14, "refused": 1})
        assert "敏感" in work.rejects[0]["reasons"][0]
    with ScriptedServer(FAULTS["moderation"]) as server:  # of all: no reason to stop
        garden.write_entries(work.input, 40)
        assert work.run(server, "--min_success=0")[0] == 0
    check_whole(work, 40, {"done": 14, "refused": 26})


# -- replies that break off ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        *(("length", "rejected"), ("max_tokens", "rejected"), ("stop", "rejected")),
        *(("content_filter", "refused"), ("sensitive", "refused"), (None, "refused")),
        *(("insufficient_system_resource", "refused"), ("error", "refused"), ("x", "refused")),
    ],
)
def test_half_a_sentence_is_no_pair_and_the_reject_says_why(work, reason, outcome):
    work = work(2)
    with ScriptedServer(cut(reason)) as server:
        assert work.run(server, "--retries=1")[0] == 1
        assert len(server.seen) == 4
    check_whole(work, 2, {outcome: 2})
    for reject in work.rejects:
        assert f"finish_reason：{reason or 'null'}" in reject["reasons"][0]
        assert len(reject["passed"]) == 2  # the whole ones
    with ScriptedServer(writer) as server:
        work.run(server)
        assert len(server.seen) == (2 if outcome == "refused" else 0)


def test_an_empty_answer_is_no_answer(work):
    work = work(2)
    with ScriptedServer(lambda asked: good("")) as server:
        assert work.run(server, "--retries=0")[0] == 1
        check_whole(work, 2, {"refused": 2})
        server.script = writer
        assert work.run(server)[0] == 0
    check_whole(work, 2, {"done": 2})


def test_whole_pairs_before_the_break_are_kept(work):
    work = work(2)
    with ScriptedServer(cut("content_filter")) as server:
        assert work.run(server, "--n_min=2")[0] == 0
    check_whole(work, 2, {"done": 2})
    assert len(work.pairs) == 4 and all(pair["answer"].endswith("。") for pair in work.pairs)


def test_costs_are_unknown_where_no_usage_is_sent(work):
    work = work(4)

    def answer(asked):
        said = {"choices": [{"message": {"content": garden.reply(asked.body["messages"])}}]}
        return body(json.dumps(said).encode())

    with ScriptedServer(answer) as server:
        code, out, _ = work.run(server, "--price_in=1", "--price_out=2")
        rows = [line.split() for line in out.splitlines()]
        assert code == 0 and ["cost", "unknown", "unknown"] in rows
        assert ["tokens", "read", "unknown", "unknown"] in rows
        garden.write_entries(work.input, 6)
        server.script = writer
        out = work.run(server, "--price_in=1", "--price_out=2")[1]
    assert re.search(r"cost +0\.00 +0\.00 \+ unknown", out)
    assert re.search(r"answers without a count of tokens +0 +4", out)


# -- all of it -------------------------------------------------------------------------------------


def test_all_faults_in_turn_and_two_kills(work):
    """bench/generate.py --measure=faults does the same with 5,000 entries and five kills."""
    work, script = work(110), FaultsInTurn(3, 4)
    with serving(script) as server:
        survive(work, server, 2, "--workers=8", "--min_success=0", "--retries=8")
    assert set(script.met) == set(FAULTS)
    check_whole(work, 110, {"done": 110})
    assert len(work.pairs) == 330


# -- many keys, other ways of asking ---------------------------------------------------------------


def test_a_file_of_keys(work):
    work = work(24)
    keys = [f"sk-secret-{i}" for i in range(6)]
    (work.folder / "keys.txt").write_text("# ours\n\n" + "\n".join(keys) + "\n", encoding="utf-8")

    def answer(asked):
        is_spent = asked.headers["authorization"].endswith(("-0", "-3"))
        return FAULTS["quota"](asked) if is_spent else good(garden.reply(asked.body["messages"]))

    with ScriptedServer(answer) as server:
        code, out, err = work.run(server, f"--api_key_file={work.folder / 'keys.txt'}")
        assert code == 0 and "sk-secret" not in out + err
        used = {asked.headers["authorization"].removeprefix("Bearer ") for asked in server.seen}
        assert used == set(keys) and err.count("is not asked any more") == 2
    check_whole(work, 24, {"done": 24})


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (None, [], "cannot be read (No such file or directory)"),
        ("# none\n", [], "no key in it"),
        ("a b\n", [], "line 1: no key"),
        ("a\n\na\n", [], "line 3: the same key as in line 1"),
        ("a\n", ["--api_key_env=HOME"], "no api_key_env beside it"),
        ("a\n", ["--base_url=http://localhost:1,http://localhost:2"], "expected one base_url"),
    ],
)
def test_mistakes_in_a_file_of_keys(work, text, words, message):
    work = work(1)
    path = work.folder / "keys.txt"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with ScriptedServer(writer) as server:
        code, _, err = work.run(server, f"--api_key_file={path}", *words)
        assert code == 2 and message in err and err.count("\n") == 1 and server.seen == []


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--extra_body=[1]", "extra_body=[1]: expected a JSON object"),
        ("--extra_body={x}", "expected a JSON object"),
        ('--extra_body={"model": "x"}', "model cannot be given here"),
        ("--answer_min=0", "answer_min=0: expected at least 1"),
        ("--answer_min=301", "answer_max=300: is below answer_min=301"),
        ("--top_p=1.5", "top_p=1.5: expected more than 0"),
        ("--verify_model=x", "verify_model: needs --verify=true"),
    ],
)
def test_errors_are_one_line(work, word, message):
    work = work(1)
    with ScriptedServer(writer) as server:
        code, _, err = work.run(server, word)
        assert code == 2 and message in err and err.count("\n") == 1 and server.seen == []


def test_answers_have_a_least_length(work):
    work = work(1)
    with ScriptedServer(writer) as server:
        code, _, _ = work.run(server, "--answer_min=100", "--retries=0")
        assert code == 1 and "答案100到300个字" in server.seen[0].text
    assert work.progress[0]["first"]["answer length"] == 3


def test_files_of_topics_take_turns(work):
    """Three books in three files, four lines each: the same book is not asked twice in a row."""
    work = work(0)
    books, paths = ("红楼梦", "西游记", "三国演义"), []
    for book in books:
        rows = [dict(title=book, text=f"第{i}种写法\n问：甲？\n答：乙。") for i in range(4)]
        paths.append(write_jsonl(work.folder / f"{book}.jsonl", rows))
    words = ["--prompt=topic", "--rounds=1", "--n_min=1", "--workers=1"]
    words.append("--input=" + ",".join(map(str, paths)))

    def answer(asked):
        letter = garden.LETTERS[asked.number] * 2
        pairs = [dict(question=f"{letter}有何用？", answer=f"{letter}可以做{letter}。")]
        return good(json.dumps(pairs, ensure_ascii=False))

    with ScriptedServer(answer) as server:
        code, _, err = work.run(server, *words)
        assert code == 0, err
        asked = [next(book for book in books if book in seen.text) for seen in server.seen]
        assert asked == list(books) * 4
        kinds = [re.search("第.种写法", seen.text)[0] for seen in server.seen]
        assert kinds == [f"第{i}种写法" for i in range(4) for _ in books]
        # The fourth time a book is asked, what it gave before is in the prompt.
        assert all(garden.LETTERS[n] * 2 in server.seen[9].text for n in (1, 4, 7))


# -- the judge -------------------------------------------------------------------------------------


def verdicts(asked, wrong=()):
    """What a judge says of the pairs in its prompt: no to questions with one of the words."""
    found = re.findall(r"(\d+)\. 问：(.*)\n +答：(.*)", asked.text)
    said = []
    for n, question, answer in found:
        follows = not any(word in question for word in wrong)
        said.append(dict(n=int(n), follows="yes" if follows else "no", quote=answer * follows))
    return json.dumps({"verdicts": said}, ensure_ascii=False)


def is_judging(asked):
    """Whether it is a question to the judge."""
    return "事实核对员" in asked.body["messages"][0]["content"]


def judged_by(judge):
    return lambda asked: judge(asked) if is_judging(asked) else writer(asked)


def test_the_judge_drops_what_does_not_follow(work):
    work = work(4)
    script = judged_by(lambda asked: good(verdicts(asked, ["产什么"])))
    with ScriptedServer(script) as server:
        words = ("--verify=true", "--n_min=2", "--price_in=1000000", "--workers=1")
        code, out, err = work.run(server, *words)
        assert code == 0, err
        assert sum(map(is_judging, server.seen)) == 4 == len(server.seen) - 4
        judge = next(filter(is_judging, server.seen))
        sent = judge.body
        assert sent["temperature"] == 0.01 and "verdicts" in str(sent["response_format"])
        assert all(text in judge.text for text in garden.entry(0)["text"].split("。"))
        assert work.run(server, *words)[0] == 0 and len(server.seen) == 8  # it is in the journal
    check_whole(work, 4, {"done": 4})
    assert len(work.pairs) == 8 and not any("产什么" in pair["question"] for pair in work.pairs)
    assert [line["first"] for line in work.progress] == [{"does not follow": 1}] * 4
    assert work.progress[0]["judging"]["answers"] == 1
    rows = [line.split() for line in out.splitlines()]
    assert ["judge:", "answers", "4", "4"] in rows and ["does", "not", "follow", "4", "4"] in rows
    assert ["judge:", "tokens", "read", "400", "400"] in rows and "judge: cost" in out


def test_too_few_that_follow_are_asked_again_with_the_reason(work):
    work = work(1)
    script = judged_by(lambda asked: good(verdicts(asked, ["谁建", "产什么"])))
    with ScriptedServer(script) as server:
        assert work.run(server, "--verify=true", "--retries=1")[0] == 1
        again = [asked for asked in server.seen if not is_judging(asked)][-1]
    assert "不能由条目得出" in again.text and work.progress[0]["outcome"] == "rejected"


@pytest.mark.parametrize(
    ("quote", "follows"),
    [
        (lambda answer: answer, True),
        (lambda answer: answer[:-1] + "……", True),
        (lambda answer: f"“{answer[:4]}”…{answer[4:]}", True),
        (lambda answer: "", False),
        (lambda answer: "蒸汽机由瓦特改良。", False),
        (lambda answer: answer[0], False),
    ],
)
def test_a_yes_needs_words_that_are_in_the_text(work, quote, follows):
    work = work(1)

    def judge(asked):
        said = json.loads(verdicts(asked))["verdicts"]
        return good(json.dumps([dict(one, quote=quote(one["quote"])) for one in said]))

    with ScriptedServer(judged_by(judge)) as server:
        code, _, _ = work.run(server, "--verify=true", "--retries=0")
    assert (code == 0) == follows


@pytest.mark.parametrize("shape", ["list", "lines", "fenced", "booleans", "Chinese", "thinking"])
def test_verdicts_in_any_shape(work, shape):
    def judge(asked):
        said = json.loads(verdicts(asked))["verdicts"]
        if shape == "booleans":
            said = [dict(one, follows=True) for one in said]
        if shape == "Chinese":
            said = [dict(one, follows="是", n=str(one["n"])) for one in said]
        text = json.dumps(said, ensure_ascii=False)
        shapes = dict(lines="\n".join(json.dumps(one) for one in said), fenced=f"```\n{text}\n```")
        shapes["thinking"] = f'<think>{{"n": 1, "follows": "no", "quote": ""}}</think>{text}'
        return good(shapes.get(shape, text))

    work = work(1)
    with ScriptedServer(judged_by(judge)) as server:
        assert work.run(server, "--verify=true")[0] == 0
    check_whole(work, 1, {"done": 1})


def test_a_judge_without_a_verdict_burns_no_entry(work):
    work = work(3)

    def silent(asked):
        return good("都挺好。" if asked.number % 2 else "{}")

    with ScriptedServer(judged_by(silent)) as server:
        assert work.run(server, "--verify=true")[0] == 1
        assert sum(map(is_judging, server.seen)) == 9
        check_whole(work, 3, {"refused": 3})
        assert "no verdict on 3 of 3 pairs" in work.rejects[0]["reasons"][-1]
        server.script = judged_by(lambda asked: good(verdicts(asked)))
        assert work.run(server, "--verify=true")[0] == 0
    check_whole(work, 3, {"done": 3})


def test_a_model_that_is_no_judge_stops_the_run(work):
    work = work(40)
    with ScriptedServer(judged_by(lambda asked: good("都挺好。"))) as server:
        code, _, err = work.run(server, "--verify=true")
        assert code == 2 and "no verdict on 10 entries in a row" in err and "都挺好" in err
    assert work.progress == [] and work.rejects == []


def test_another_server_judges(work):
    work = work(5)
    os.environ["JUDGE_KEY"] = "j"

    def judge(asked):
        return good(verdicts(asked)) if is_judging(asked) else good("1")

    with ScriptedServer(writer) as one, ScriptedServer(judge, models=["big"], key="j") as other:
        words = [f"--verify_base_url={other.base_url}", "--verify_api_key_env=JUDGE_KEY"]
        code, _, err = work.run(one, "--verify=true", *words)
        assert code == 0, err
        assert len(one.seen) == len(other.seen) == 5 and other.seen[0].body["model"] == "big"
    assert lines(work.output.with_name("pairs.progress.jsonl"))[0]["verify_model"] == "big"


def test_a_topic_has_no_text_to_judge_by(work):
    work = work(0)
    write_jsonl(work.input, [dict(title="茶", text="例")])
    with ScriptedServer(writer) as server:
        code, _, err = work.run(server, "--prompt=topic", "--verify=true")
    assert code == 2 and "has no text" in err


# -- real servers ----------------------------------------------------------------------------------


def test_our_own_server_writes_pairs(work, byte_tokenizer):
    """A run that knows one reply, served by server.py: no entry is lost, whatever it says."""
    work = work(2)
    folder = save_scripted_run(work.folder / "run", byte_tokenizer, "abcd", block_size=64)
    with serve_runs([folder], byte_tokenizer) as url:

        class Served:
            base_url = url + "/v1/chat/completions"

        words = ("--retries=0", "--max_tokens=20", "--min_success=0", "--verify=true", "--seed=1")
        code, _, err = work.run(Served, *words)
    assert code == 0, err
    check_whole(work, 2)


def test_recorded_bodies_of_vllm_and_ollama(work):
    """Whole answers with all the fields that their documentation shows."""
    work = work(2)

    def answer(asked):
        text = garden.reply(asked.body["messages"])
        vllm = {
            **dict(id="chatcmpl-1", object="chat.completion", created=1, model="scripted"),
            "choices": [
                {
                    **dict(index=0, logprobs=None, finish_reason="stop", stop_reason=None),
                    "message": dict(
                        role="assistant",
                        reasoning_content=None,
                        content=text,
                        refusal=None,
                        tool_calls=[],
                        function_call=None,
                        annotations=None,
                        audio=None,
                    ),
                }
            ],
            "usage": dict(prompt_tokens=9, total_tokens=99, completion_tokens=90),
            **dict(service_tier=None, prompt_logprobs=None, kv_transfer_params=None),
        }
        ollama = {
            **dict(id="chatcmpl-2", object="chat.completion", created=1, model="scripted"),
            "system_fingerprint": "fp_ollama",
            "choices": [
                {
                    **dict(index=0, finish_reason="stop"),
                    "message": dict(role="assistant", content=text, reasoning="让我想想"),
                }
            ],
            "usage": dict(prompt_tokens=9, completion_tokens=90, total_tokens=99),
        }
        return body(json.dumps(vllm if asked.number % 2 else ollama).encode())

    with ScriptedServer(answer) as server:
        assert work.run(server, "--workers=1")[0] == 0
    check_whole(work, 2, {"done": 2})
    assert all(line["prompt_tokens"] == 9 for line in work.progress)
