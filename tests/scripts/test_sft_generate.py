"""sft/sft_generate.py, run as a user runs it, against servers on real sockets that do all that
servers do; and the parts under it that have no file of their own."""

import json
import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import garden
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from local_server import serve_runs
from pair_work import Work, check_whole, lines, serving, writer
from scripted_server import ScriptedServer, error, good, half, reset
from tiny_run import run_here, save_scripted_run, write_jsonl

from minigpt.common.errors import UserError
from minigpt.evaluation.examples import read_pairs
from minigpt.openai.errors import QuestionRefused
from minigpt.synthesis.dedup import Deduplicator
from minigpt.synthesis.filters import Rules
from minigpt.synthesis.generator import (
    EntryTasks,
    PairGenerator,
    RecentPairs,
    Result,
    Task,
    TopicTasks,
    run_tasks,
    shortened,
)
from minigpt.synthesis.journal import beside, entry_hash
from minigpt.synthesis.pool import PoolClosed
from minigpt.synthesis.templates import load

PROMPT = load(ROOT / "sft" / "prompts" / "wiki.md")


@pytest.fixture
def work(tmp_path):
    """work(n): a Work with garden's entries 0 … n − 1."""

    def make(n):
        made = Work(tmp_path)
        garden.write_entries(made.input, n)
        return made

    return make


# -- all goes well ---------------------------------------------------------------------------------


def test_entries_become_pairs(work):
    work = work(9)
    with ScriptedServer(writer) as server:
        code, out, err = work.run(server)
        assert code == 0, err
        assert server.most_in_flight <= 4 and len(server.seen) == 9
    check_whole(work, 9, {"done": 9})
    by_id = {pair["id"]: [] for pair in work.pairs}
    for pair in work.pairs:
        by_id[pair["id"]].append({name: pair[name] for name in ("question", "answer")})
        assert pair["model"] == "scripted"
    assert by_id == {f"e{i}": _pairs(i) for i in range(9)}
    rows = [line.split() for line in out.splitlines()]
    assert ["entries", "finished", "9", "9"] in rows and ["pairs", "27", "27"] in rows
    assert ["tokens", "read", "900", "900"] in rows and "no rule was broken" in out
    assert f"{work.output}: 27 pairs" in out


def _pairs(i):
    return garden.pairs_in([{"content": garden.entry(i)["text"]}])


def test_what_a_server_is_sent(work):
    work = work(1)
    words = ("--temperature=0.7", "--max_tokens=99", "--seed=5", "--n_min=2", "--n_max=4")
    with ScriptedServer(writer) as server:
        assert work.run(server, *words)[0] == 0
        body = server.seen[0].body
    entry = garden.entry(0)
    filled = dict(n_min=2, n_max=4, question_max=15, answer_max=300, previous="")
    assert body["messages"] == PROMPT.messages(text=entry["text"], title=entry["title"], **filled)
    assert body["model"] == "scripted" and body["response_format"]["type"] == "json_schema"
    sent = [body[name] for name in ("temperature", "max_tokens", "seed")]
    assert sent == [0.7, 99, 5]


def test_the_pairs_can_be_prepared_for_training(work, tmp_path):
    work = work(30)
    with ScriptedServer(writer) as server:
        assert work.run(server)[0] == 0
    words = (f"--input={work.output}", f"--dataset={tmp_path / 'data'}", "--workers=1")
    code, out, _ = run_here("data/prepare_sft.py", *words)
    assert code == 0 and "read 90 = kept 90 + dropped 0" in out
    assert len(read_pairs(work.output)) == 90


def test_a_second_run_has_nothing_to_do(work):
    work = work(5)
    with ScriptedServer(writer) as server:
        assert work.run(server)[0] == 0
        before = work.output.read_bytes()
        code, out, err = work.run(server)
        assert code == 0 and len(server.seen) == 5 and work.output.read_bytes() == before
        assert "going on: 5 entries finished, 15 pairs written" in err
        rows = [line.split() for line in out.splitlines()]
        assert ["entries", "finished", "0", "5"] in rows and ["pairs", "0", "15"] in rows
        garden.write_entries(work.input, 8)
        assert work.run(server, "--limit=7")[0] == 0 and len(server.seen) == 7
    check_whole(work, 7)


def test_several_servers_share_the_work(work):
    work = work(40)
    with (
        ScriptedServer(lambda asked: good(garden.reply(asked.body["messages"]), after=0.02)) as one,
        ScriptedServer(writer, key="k3y") as two,
    ):
        os.environ["GARDEN_KEY"] = "k3y"
        words = ("--api_key_env=none", "--api_key_env=GARDEN_KEY", "--workers=6")
        code, _, err = work.run(one, f"--base_url={one.base_url},{two.base_url}", *words)
        assert code == 0 and "k3y" not in err
        assert len(one.seen) + len(two.seen) == 40 and min(len(one.seen), len(two.seen)) > 2
    check_whole(work, 40)


def test_dry_run_asks_nobody_and_writes_nothing(work):
    work = work(2)
    with ScriptedServer(writer) as server:
        code, out, _ = work.run(server, "--dry_run")
        assert code == 0 and server.seen == []
    assert garden.entry(0)["text"] in out and garden.entry(1)["title"] not in out
    assert re.search(r"\d+ tokens", out) and list(work.folder.iterdir()) == [work.input]


def test_a_long_entry_is_cut_at_a_sentence_and_reported(work):
    work = work(1)
    entry = garden.entry(0)
    text = entry["text"] + "松" * 50 + "。" + "柏" * 50
    write_jsonl(work.input, [dict(entry, text=text)])
    with ScriptedServer(writer) as server:
        code, out, _ = work.run(server, "--text_max=90")
        sent = server.seen[0].body["messages"][-1]["content"]
    assert code == 0 and "松" * 50 + "。" in sent and "柏" * 50 not in sent
    assert work.progress[0]["left_out"] == 50
    assert ["entries", "cut", "at", "text_max", "1", "1"] in [
        line.split() for line in out.split("\n")
    ]


def test_duplicates_and_excluded_pairs_are_left_out(work):
    work = work(3)
    first, second, third = (garden.entry(i) for i in range(3))
    same = dict(first, id="again", text=first["text"] + second["text"])  # the same pairs again
    write_jsonl(work.input, [first, same, third])
    known = write_jsonl(work.folder / "known.jsonl", [_pairs(2)[1]])
    with ScriptedServer(writer) as server:
        code, out, _ = work.run(server, f"--exclude={known}", "--workers=1")
    assert code == 0
    assert [line["pairs"] for line in work.progress] == [3, 0, 2]
    assert [line["doubles"] for line in work.progress] == [{}, {"exact": 3}, {"exact": 1}]
    asked = [pair["question"] for pair in work.pairs]
    assert _pairs(2)[1]["question"] not in asked and work.pairs[-1]["n"] == "2/2"
    assert "duplicates left out, exact" in out


def test_duplicates_are_found_across_runs(work):
    work = work(1)
    with ScriptedServer(writer) as server:
        assert work.run(server)[0] == 0
        entry = garden.entry(0)
        write_jsonl(work.input, [dict(entry, text=entry["text"] + "松。")])
        assert work.run(server)[0] == 0
    assert [line["doubles"] for line in work.progress] == [{}, {"exact": 3}]


# -- replies that are not good enough --------------------------------------------------------------


def bad_first(text, **keywords):
    """A server that answers `text` first and well when it is asked again."""

    def answer(asked):
        messages = asked.body["messages"]
        if any(message["role"] == "assistant" for message in messages):
            return good(garden.reply(messages))
        return good(text(messages) if callable(text) else text, **keywords)

    return answer


def changed(name, value):
    """Pairs of which each has one field changed."""
    return lambda messages: json.dumps(
        [{**pair, name: value} for pair in garden.pairs_in(messages)]
    )


BAD = {
    "nothing to read": "我不知道。",
    "empty": "",
    "too few": lambda messages: json.dumps(garden.pairs_in(messages)[:2]),
    "no question": changed("question", "这不是问题。"),
    "question too long": changed("question", "松" * 30 + "？"),
    "pronoun": changed("question", "他产什么？"),
    "ungrounded": changed("answer", "蒸汽机由瓦特改良于苏格兰。"),
    "one question thrice": lambda messages: json.dumps(garden.pairs_in(messages)[:1] * 3),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reply_is_asked_again_with_the_reason(work, kind):
    work = work(1)
    with ScriptedServer(bad_first(BAD[kind])) as server:
        code, out, err = work.run(server)
        first, second = (asked.body["messages"] for asked in server.seen)
    assert code == 0, err
    assert second[: len(first)] == first and [m["role"] for m in second[-2:]] == [
        "assistant",
        "user",
    ]
    assert second[-1]["content"] and second[-2]["content"]
    (line,) = work.progress
    assert line["outcome"] == "done" and line["attempts"] == 2 and line["pairs"] == 3
    assert line["first"] and line["last"].keys() <= {"same question"} and "first replies" in out


def test_what_passed_is_kept_while_the_rest_is_asked_again(work):
    work = work(1)

    def answer(asked):
        pairs = garden.pairs_in(asked.body["messages"])
        return good(json.dumps(pairs[:2] if asked.number == 1 else pairs[1:]))

    with ScriptedServer(answer) as server:
        assert work.run(server)[0] == 0
    assert [pair["question"] for pair in work.pairs] == [pair["question"] for pair in _pairs(0)]


def test_an_answer_that_was_cut_loses_its_last_object(work):
    work = work(1)
    text = garden.reply([{"content": garden.entry(0)["text"]}])
    cut = text[: text.rindex("。")]  # within the last answer, which a repair would close
    with ScriptedServer(bad_first(cut, finish_reason="length")) as server:
        assert work.run(server)[0] == 0
    assert work.progress[0]["attempts"] == 2
    assert [pair["answer"] for pair in work.pairs] == [pair["answer"] for pair in _pairs(0)]


@pytest.mark.parametrize("retries", [0, 2])
def test_what_never_passes_is_rejected_with_answer_and_reasons(work, retries):
    work = work(4)
    bad_title = garden.entry(2)["title"]

    def answer(asked):
        pairs = garden.pairs_in(asked.body["messages"])
        is_bad = garden.title_in(asked.body["messages"]) == bad_title
        return good(json.dumps(pairs[:1] if is_bad else pairs))

    with ScriptedServer(answer) as server:
        assert work.run(server, f"--retries={retries}")[0] == 0
        assert len(server.seen) == 3 + 1 + retries
        assert work.run(server)[0] == 0  # rejected is finished, too
        assert len(server.seen) == 3 + 1 + retries
    check_whole(work, 4, {"done": 3, "rejected": 1})
    (reject,) = work.rejects
    assert reject["id"] == "e2" and reject["raw"] == json.dumps(_pairs(2)[:1])
    assert reject["reasons"] and reject["passed"] == _pairs(2)[:1]


@pytest.mark.parametrize(("share", "code"), [("0.5", 0), ("0.8", 1)])
def test_min_success(work, share, code):
    work = work(4)
    bad_title = garden.entry(2)["title"]

    def answer(asked):
        messages = asked.body["messages"]
        return good("[]" if garden.title_in(messages) == bad_title else garden.reply(messages))

    with ScriptedServer(answer) as server:
        for _ in range(2):  # the verdict on the whole file: the second run finds nothing to do
            found, _, err = work.run(server, f"--min_success={share}", "--retries=0")
            assert found == code and ("75.0% of the entries" in err) == bool(code)
        assert len(server.seen) == 4


# -- servers that fail -----------------------------------------------------------------------------


def test_faults_of_servers_cost_nothing(work):
    work = work(30)
    faults = [
        error(429, "slow down", {"Retry-After": "0"}),
        error(500, "internal"),
        error(503, "loading"),
        reset(),
        half(),
    ]
    chance = random.Random(0)

    def answer(asked):
        if chance.random() < 0.3:
            return chance.choice(faults)
        return good(garden.reply(asked.body["messages"]), after=0.01)

    with ScriptedServer(answer) as server:
        code, _, err = work.run(server, "--workers=8")
        assert code == 0, err
        assert len(server.seen) > 30
    check_whole(work, 30, {"done": 30})


def test_a_server_that_dies_and_returns(work):
    work = work(40)
    with serving(lambda a: good(garden.reply(a.body["messages"]), after=0.02)) as server:
        process = work.start(server)
        work.wait_for(5)
        server.die()
        time.sleep(0.3)
        server.revive()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    check_whole(work, 40, {"done": 40})


def test_a_server_that_is_gone_for_good_ends_the_run_and_nothing_is_lost(work):
    work = work(12)
    with serving(writer) as server:

        def answer(asked):
            if asked.number > 6:
                threading.Thread(target=server.die).start()
                return reset()
            return writer(asked)

        server.script = answer
        code, out, err = work.run(server, "--patience=1", "--workers=2")
        assert code == 2 and "no server has answered for 1 s" in err and "entries finished" in out
        finished = len(work.progress)
        assert 0 < finished < 12
        server.script = writer
        server.die()
        server.revive()
        assert work.run(server)[0] == 0
    check_whole(work, 12, {"done": 12})


def test_one_entry_that_is_refused_does_not_stop_the_others(work):
    work = work(5)
    title = garden.entry(1)["title"]

    def answer(asked):
        if garden.title_in(asked.body["messages"]) == title:
            return error(400, "This model's maximum context length is 4096 tokens")
        return writer(asked)

    with ScriptedServer(answer) as server:
        assert work.run(server)[0] == 0
    check_whole(work, 5, {"done": 4, "refused": 1})
    assert "context length" in work.rejects[0]["reasons"][0]


def test_a_wrong_key_and_an_unknown_model_fail_at_once(work):
    work = work(3)
    os.environ["GARDEN_KEY"] = "wr0ng"
    with ScriptedServer(writer, key="k3y") as server:
        code, out, err = work.run(server, "--api_key_env=GARDEN_KEY")
        assert (
            code == 2 and server.seen == [] and server.base_url in err and "wr0ng" not in err + out
        )
    with ScriptedServer(writer, models=("qwen", "gemma")) as server:
        code, _, err = work.run(server, "--model=qwem")
        assert code == 2 and "qwen" in err and "gemma" in err
        code, _, err = work.run(server)
        assert code == 2 and "qwen" in err and server.seen == []
    assert list(work.folder.iterdir()) == [work.input]


# -- stopping and going on -------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_finishes_what_is_being_answered(work, number):
    work = work(200)
    with ScriptedServer(lambda a: good(garden.reply(a.body["messages"]), after=0.1)) as server:
        process = work.start(server)
        work.wait_for(6)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        asked = {garden.title_in(seen.body["messages"]) for seen in server.seen}
    assert process.returncode == 130 and "stopping" in err and "entries finished" in out
    finished = {pair["question"] for pair in work.pairs}
    assert 6 <= len(asked) < 60 and len(work.progress) == len(asked)
    assert finished == {p["question"] for i in range(200) for p in _pairs(i) if _title(i) in asked}
    with ScriptedServer(writer) as server:
        assert work.run(server, "--workers=16")[0] == 0
        assert len(server.seen) == 200 - len(asked)
    check_whole(work, 200)


def _title(i):
    return garden.entry(i)["title"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_second_signal_ends_at_once(work):
    work = work(50)
    with serving(lambda asked: good("[]", after=30)) as server:
        process = work.start(server)
        while not server.seen:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert "stopping" in process.stderr.readline() + process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT


def test_another_prompt_is_a_new_generation(work):
    work = work(3)
    other = work.folder / "other.md"
    text = (ROOT / "sft/prompts/wiki.md").read_text(encoding="utf-8")
    other.write_text(text.replace("。", "。 ", 1), encoding="utf-8")
    with ScriptedServer(writer) as server:
        assert work.run(server)[0] == 0
        for words in ([f"--prompt={other}"], ["--temperature=0.9"], ["--n_max=5"]):
            code, _, err = work.run(server, *words)
            assert code == 0 and "is a new one" in err and "3 entries" in err
        assert len(server.seen) == 12
    assert len(work.pairs) == 9  # the others were duplicates
    generations = [line for line in lines(beside(work.output)[0]) if "entry" not in line]
    assert len({line["generation"] for line in generations}) == len(generations) == 4
    assert generations[0]["template"] == "wiki" and generations[0]["model"] == "scripted"
    assert generations[0]["version"] == PROMPT.version


def test_a_torn_line_is_mended(work):
    work = work(4)
    with ScriptedServer(writer) as server:
        assert work.run(server, "--workers=1")[0] == 0
        whole = work.output.read_bytes()
        work.output.write_bytes(whole[:-30])
        code, _, err = work.run(server)
        assert code == 0 and "cut off" in err and len(server.seen) == 5
    assert work.output.read_bytes() == whole


def test_a_file_of_others_is_not_touched(work):
    work = work(1)
    work.output.write_text('{"question": "问？", "answer": "答。"}\n', encoding="utf-8")
    with ScriptedServer(writer) as server:
        code, _, err = work.run(server)
        assert code == 2 and "line 1" in err and server.seen == []
    assert work.output.read_text(encoding="utf-8") == '{"question": "问？", "answer": "答。"}\n'


def test_killed_five_times(work):
    """One reply or failure in five is bad; each run but the last is killed in the midst of it."""
    n = 400
    work = work(n)
    chance, lock = random.Random(1), threading.Lock()
    rejected = {_title(i) for i in range(0, n, 20)}

    def answer(asked):
        messages = asked.body["messages"]
        with lock:
            dice = chance.random()
        if garden.title_in(messages) in rejected:
            return good("不会。")
        if dice < 0.1:
            return chance.choice([error(500, "internal"), reset(), half(), good("{"), good("")])
        if dice < 0.2:
            return good(json.dumps(garden.pairs_in(messages)[:1]))
        return good(garden.reply(messages))

    with serving(answer) as server:
        words = ("--workers=8", "--retries=6", "--min_success=0.9")
        reported = {}
        for kill in range(1, 6):
            process = work.start(server, *words)
            work.wait_for(len(work.progress) + 40 + kill)
            process.kill()
            process.communicate(timeout=30)
            whole = map(_loaded, beside(work.output)[0].read_bytes().split(b"\n"))
            reported.update((line["entry"], line) for line in whole if line and "entry" in line)
            kept = Counter(pair["entry"] for pair in map(_loaded, work.output.open("rb")) if pair)
            for entry, line in reported.items():
                assert kept[entry] >= line["pairs"]
        code, _, err = work.run(server, *words)
        assert code == 0, err
    check_whole(work, n, {"done": n - len(rejected), "rejected": len(rejected)})
    assert {pair["question"] for pair in work.pairs} == {
        pair["question"] for i in range(n) if _title(i) not in rejected for pair in _pairs(i)
    }
    assert all(line in work.progress for line in reported.values())


def _loaded(line):
    try:
        return json.loads(line)
    except ValueError:
        return None


# -- topics ----------------------------------------------------------------------------------------


def test_topics_take_turns_and_list_earlier_questions(work):
    work = work(0)
    topics = [dict(title=title, text="问：甲？\n答：乙。") for title in ("红楼梦", "长城", "茶")]
    write_jsonl(work.input, topics)
    words = ("--prompt=topic", "--rounds=3", "--n_min=1", "--n_max=2", "--workers=2")

    def answer(asked):
        title = next(t["title"] for t in topics if t["title"] in asked.text)
        name = garden.LETTERS[asked.number] * 2
        pairs = [
            dict(question=f"{title}有{name}吗？", answer=f"{title}里的{name}有{asked.number}棵。")
        ]
        return good(json.dumps(pairs, ensure_ascii=False))

    with ScriptedServer(answer) as server:
        code, _, err = work.run(server, *words, "--limit=5")
        assert code == 0, err
        assert [pair["n"] for pair in work.pairs] == ["1/1"] * 5
        code, _, err = work.run(server, *words)  # the memory survives
        assert code == 0, err
        texts = [asked.text for asked in server.seen]
    ids = [pair["id"] for pair in work.pairs]
    assert sorted(ids) == sorted(f"{t['title']}#{r}" for t in topics for r in (1, 2, 3))
    by_topic = {t["title"]: [text for text in texts if t["title"] in text] for t in topics}
    for title, asked in by_topic.items():
        gave = [pair["question"] for pair in work.pairs if pair["id"].startswith(title)]
        for number, text in enumerate(asked):
            listed = [question in text for question in gave]
            assert listed == [number - 2 <= i < number for i in range(3)]  # the last n_max of them


# -- our own server --------------------------------------------------------------------------------


def test_our_own_server(work, byte_tokenizer):
    """A model that cannot do it: every entry is rejected, and accounted for."""
    work = work(3)
    folder = save_scripted_run(work.folder / "run", byte_tokenizer, "abcd", block_size=64)
    with serve_runs([folder], byte_tokenizer) as url:
        code, out, err = work.run(SimpleNamespace(base_url=url), "--retries=1", "--max_tokens=20")
    assert code == 1, err
    outcomes = Counter(line["outcome"] for line in work.progress)
    assert outcomes.total() == 3 and not outcomes["done"] and work.pairs == []
    assert len(work.rejects) == 3


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--n_min=0", "n_min=0: expected at least 1"),
        ("--limit=-1", "limit=-1: expected at least 1, or none"),
        ("--n_max=2", "n_max=2: is below n_min=3"),
        ("--retries=-1", "retries=-1: expected at least 0"),
        ("--min_success=1.5", "min_success=1.5: expected a share"),
        ("--prompt=facst", "facst"),
        ("--input=none.jsonl", "none.jsonl: no such file"),
        ("--output=pairs.txt", "ends in .jsonl"),
        ("--base_url=ftp://x", "base_url"),
        ("--api_key_env=NOT_SET_ANYWHERE", "NOT_SET_ANYWHERE is not set"),
        ("--exclude=none.jsonl", "none.jsonl: no such file"),
        ("--workers=0", "workers=0"),
        ("--timeout=0", "timeout=0"),
    ],
)
def test_errors_are_one_line(work, word, message):
    work = work(1)
    with ScriptedServer(writer) as server:
        code, out, err = work.run(server, word)
        assert code == 2 and message in err and server.seen == []
        assert "Traceback" not in err and err.count("\n") == 1
    assert list(work.folder.iterdir()) == [work.input]


def test_a_bad_input_line_is_reported_before_any_request(work):
    work = work(20)
    with open(work.input, "a", encoding="utf-8") as file:
        file.write('{"title": "no text"}\n')
    with ScriptedServer(writer) as server:
        code, _, err = work.run(server)
        assert code == 2 and "wiki.jsonl, line 21: field `text`" in err and server.seen == []


# -- parts -----------------------------------------------------------------------------------------


@given(st.text("松。，a ", max_size=60), st.integers(1, 60))
def test_shortened(text, limit):
    kept, left_out = shortened(text, limit)
    assert text.startswith(kept) and len(kept) + left_out == len(text) and len(kept) <= limit
    assert kept == text or len(kept) >= min(limit, max(1, limit // 2))
    assert shortened(text, None) == (text, 0)


def test_shortened_ends_with_a_sentence_a_clause_or_a_word():
    assert shortened("甲乙丙丁。戊，己庚", 8) == ("甲乙丙丁。", 4)
    assert shortened("甲。乙丙丁戊，己庚辛", 8) == ("甲。乙丙丁戊，", 3)
    assert shortened("abc defgh ijk", 11) == ("abc defgh ", 3)
    assert shortened("甲" * 9, 8) == ("甲" * 8, 1)


def tasks(n):
    return [Task(f"{i:032x}", str(i), "", "") for i in range(n)]


@given(st.integers(0, 12), st.integers(1, 4), st.sets(st.integers(0, 11)))
def test_conduct_gives_every_result_once(n, workers, slow):
    begun, most = [], []

    def interview(task):
        begun.append(task)
        most.append(len(begun) - ended[0])
        if int(task.id) in slow:
            time.sleep(0.002)
        return Result("done", raw=task.id)

    ended, closed = [0], []
    found = []
    for task, result in run_tasks(tasks(n), interview, workers, lambda: closed.append(1)):
        assert task.id == result.raw
        found.append(task)
        ended[0] += 1
    assert sorted(found) == tasks(n) and closed


def test_conduct_takes_entries_as_they_are_needed():
    taken = []

    def source():
        for task in tasks(100):
            taken.append(task)
            yield task

    may_end = threading.Event()

    def interview(task):
        assert may_end.wait(10)
        return Result("done")

    threading.Timer(0.2, may_end.set).start()
    results = run_tasks(source(), interview, 2, lambda: None)
    next(results)
    assert len(taken) == 4  # two that run, two that stand ready
    assert len(list(results)) == 99


def test_those_that_wait_for_a_server_end_with_the_run():
    stop, closed, begun = threading.Event(), threading.Event(), []

    def interview(task):
        begun.append(task)
        if task.id == "0":
            assert _until(lambda: len(begun) == 4)
            stop.set()
            return Result("done")
        assert closed.wait(10)
        raise PoolClosed("closed")

    found = list(run_tasks(iter(tasks(50)), interview, 4, closed.set, stop))
    assert [task.id for task, _ in found] == ["0"]


def test_between_results_there_is_time_for_other_things():
    ticks = []

    def interview(task):
        assert _until(lambda: len(ticks) > 2)
        return Result("done")

    assert (
        len(list(run_tasks(tasks(1), interview, 1, lambda: None, tick=lambda: ticks.append(1))))
        == 1
    )


def _until(condition, seconds=10):
    """Whether a condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_a_failure_that_concerns_all_is_raised_when_the_others_have_ended():
    closed = threading.Event()

    def interview(task):
        if task.id == "1":
            raise UserError("wrong key")
        assert closed.wait(10)
        if task.id == "3":
            raise PoolClosed("closed")
        return Result("done")

    found = []
    with pytest.raises(UserError, match="wrong key"):
        for task, _ in run_tasks(iter(tasks(50)), interview, 4, closed.set):
            found.append(task.id)
    assert found and set(found) <= {"0", "2", "4", "5", "6", "7"} and "0" in found


def generator(*answers, retries=2, **limits):
    """An PairGenerator whose server gives these answers, texts or exceptions; and what it asked."""
    asked, answers = [], iter(answers)

    def ask(messages, attempt):
        asked.append((attempt, messages))
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(text=answer, cut=False, prompt_tokens=7, completion_tokens=None)

    return PairGenerator(ask, PROMPT, Rules(**limits), retries), asked


def task_of(i):
    entry = garden.entry(i)
    return Task(
        entry_hash(entry["title"], entry["text"]), entry["id"], entry["title"], entry["text"]
    )


def test_an_interview_grows_with_what_was_wrong():
    made, asked = generator("什么？", "", garden.reply([{"content": garden.entry(0)["text"]}]))
    result = made(task_of(0))
    assert result.outcome == "done" and result.attempts == 3 and result.prompt_tokens == 21
    assert [attempt for attempt, _ in asked] == [0, 1, 2]
    roles = [message["role"] for message in asked[2][1]]
    assert roles[-4:] == ["assistant", "user", "assistant", "user"]
    assert asked[2][1][-4]["content"] == "什么？" and asked[2][1][-2]["content"].strip()


def test_refused_at_once_or_later():
    result = generator(QuestionRefused("too long"))[0](task_of(0))
    assert (result.outcome, result.attempts, result.reasons) == ("refused", 0, ["too long"])
    few = json.dumps(_pairs(0)[:1])
    result = generator(few, QuestionRefused("too long"))[0](task_of(0))
    assert result.outcome == "rejected" and result.reasons[-1] == "too long"
    assert result.raw == few and len(result.pairs) == 1
    # For a reason that may be the server's it is not final.
    result = generator(few, QuestionRefused("no", (400, "no")))[0](task_of(0))
    assert result.outcome == "refused" and result.reasons[-1] == "no"


def test_no_more_pairs_than_wanted():
    first, second = json.dumps(_pairs(0)[:1]), json.dumps(_pairs(0)[1:])
    result = generator(first, second, n_min=2, n_max=2)[0](task_of(0))
    assert [pair.question for pair in result.pairs] == [p["question"] for p in _pairs(0)[:2]]


def test_entries_are_skipped_as_they_are_finished(tmp_path):
    path = garden.write_entries(tmp_path / "wiki.jsonl", 5)
    path.write_text(path.read_text(encoding="utf-8") * 2, encoding="utf-8")  # each one twice
    log = {task_of(1).entry, task_of(3).entry}
    made = EntryTasks(path)
    assert made.total == 10
    seen = [task.id for task in made.missing(log)]
    assert seen == ["e0", "e2", "e4"] and (made.read, made.begun) == (10, 3)
    limited = EntryTasks(path, limit=2)
    assert [task.id for task in limited.missing(set())] == ["e0", "e1"]
    assert (limited.total, limited.read) == (2, 2)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="no entry with text"):
        EntryTasks(tmp_path / "empty.jsonl")


def test_rounds_of_a_topic_wait_for_one_another(tmp_path):
    topics = write_jsonl(tmp_path / "t.jsonl", [dict(title=t, text="例") for t in "甲乙"])
    log, memory = set(), RecentPairs(2)
    made = TopicTasks(topics, 2, memory)
    stream = made.missing(log)
    first, second = next(stream), next(stream)
    assert (first.id, second.id, first.previous) == ("甲#1", "乙#1", "")
    assert next(stream) is None and next(stream) is None
    log.add(first.entry)
    for i in range(3):
        memory.add(first.id, f"问{i}", f"答{i}")
    third = next(stream)
    assert third.id == "甲#2" and "问0" not in third.previous
    assert third.previous.index("问1") < third.previous.index("答2")
    assert next(stream) is None
    log.add(second.entry)
    assert next(stream).id == "乙#2" and next(stream, "end") == "end"
    assert made.total == 4


def test_a_repeated_topic_counts_once(tmp_path):
    """Asked twice at once, its pairs would stand in the file out of turn."""
    topics = write_jsonl(tmp_path / "t.jsonl", [dict(title=t, text="例") for t in "甲乙甲"])
    made = TopicTasks(topics, 1, RecentPairs(2))
    assert [task.id for task in made.missing(set())] == ["甲#1", "乙#1"] and made.total == 2


def test_only_new_pairs_are_finished():
    doubles = Deduplicator()
    pairs = [(pair["question"], pair["answer"]) for pair in _pairs(0)]
    doubles.add(*pairs[1])
    finished = Result("done", pairs, attempts=1).finished(task_of(0), doubles)
    assert finished.pairs == [pairs[0], pairs[2]] and finished.about["doubles"] == {"exact": 1}
    rejected = Result("rejected", pairs[:1]).finished(task_of(0), doubles)
    assert rejected.pairs == pairs[:1] and rejected.about["doubles"] == {}
