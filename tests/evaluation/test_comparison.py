"""The same questions to runs, servers and files of answers: what is asked, what is missing, the
figures by hand, and the tables, in which nothing that a model wrote is interpreted."""

import json
import re
from html.parser import HTMLParser

import pytest
from scripted_server import error, good
from tiny_run import run_here, save_run, save_scripted_run, write_jsonl

from minigpt.common.errors import UserError
from minigpt.evaluation.comparison import (
    Answer,
    ModelAnswers,
    Sampling,
    ask_run,
    ask_server,
    measure,
    measured,
    question_sets,
    read_answers,
    read_asked,
    summaries,
)
from minigpt.evaluation.examples import Example
from minigpt.evaluation.side_by_side import as_html, as_lines, as_markdown
from minigpt.openai.client import Client

ASKED = [Example("a", "几？", "黄河"), Example(None, "谁？", ""), Example(None, "新？", "长江")]
HOSTILE = "<script>alert(1)</script> | **粗** `x`\n[link](javascript:x) 第二行"


# -- questions -------------------------------------------------------------------------------------


def test_the_shipped_sets():
    assert question_sets() == ["eight", "novels", "prefixes"]
    eight, novels, prefixes = map(read_asked, question_sets())
    assert (len(eight), len(novels), len(prefixes)) == (8, 10, 3)
    assert not any(example.reference for example in eight)
    assert all(example.reference for example in novels + prefixes)
    assert len({example.prompt for example in eight + novels + prefixes}) == 21
    books = {example.id.split("-")[0] for example in novels}
    assert books == {"三国演义", "红楼梦", "西游记"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "几？\n\n 谁？ \n"),
        ("a.jsonl", '{"question": "几？", "answer": "黄河", "id": 7}\n{"Prompt": "谁？"}\n'),
        (
            "a.json",
            '[{"instruction": "几？", "reference": "黄河"}, {"text": "谁？"}]',
        ),
        ("a.csv", "Question,answer\n几？,黄河\n谁？,\n"),
        ("a.tsv", "question\treference\n几？\t黄河\n谁？\t\n"),
    ],
)
def test_questions_of_a_file(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = read_asked(str(tmp_path / name))
    assert [example.prompt for example in found] == ["几？", "谁？"]
    assert [example.reference for example in found] == ["" if "txt" in name else "黄河", ""]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nine", None, "no such file; expected one of eight, novels, prefixes, or a file"),
        ("a.txt", "\n", "no question in it"),
        ("a.jsonl", '{"title": "x"}\n', "line 1: expected a question in one of the fields"),
        ("a.csv", "title\nx\n", "line 2: expected a question in one of the fields"),
    ],
)
def test_mistakes_in_questions(tmp_path, name, content, message):
    if content:
        (tmp_path / name).write_text(content, encoding="utf-8")
        name = str(tmp_path / name)
    with pytest.raises(UserError, match=message):
        read_asked(name)


# -- files of answers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        lambda question, answer: {"question": question, "answer": answer},
        lambda question, answer: {"Question": question, "Answer": answer, "id": 3},
        lambda question, answer: {"prompt": question, "response": answer},
        lambda question, answer: {"question": question, "reference": "x", "prediction": answer},
        lambda question, answer: {"instruction": question, "output": answer},
        lambda question, answer: {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        },
    ],
)
def test_answers_are_found_by_their_question(tmp_path, record):
    lines = [record("新？", "长江"), record("别的？", "x"), record("几？", "黄河")]
    path = write_jsonl(tmp_path / "gpt.jsonl", lines)
    found = read_answers("gpt", path, ASKED)
    assert [answer and answer.text for answer in found.answers] == ["黄河", None, "长江"]
    assert found.notes == [
        "1 of 3 questions have no answer in it",
        "1 answers in it are to other questions",
    ]


def test_answers_without_questions_are_in_their_order(tmp_path):
    path = write_jsonl(tmp_path / "gpt.jsonl", [{"answer": text} for text in "一二三"])
    found = read_answers("gpt", path, ASKED)
    assert [answer.text for answer in found.answers] == ["一", "二", "三"] and not found.notes
    with pytest.raises(UserError, match="3 answers without their questions, and 2 questions"):
        read_answers("gpt", path, ASKED[:2])


def test_a_question_that_is_asked_twice_may_have_two_answers(tmp_path):
    path = write_jsonl(
        tmp_path / "gpt.jsonl", [{"question": "几？", "answer": text} for text in ("一", "二")]
    )
    found = read_answers("gpt", path, [ASKED[0]] * 3)
    assert [answer.text for answer in found.answers] == ["一", "二", "二"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "几?", "answer": "x"}, "none of the questions is answered.*'几？'"),
        ({"question": "几？"}, "line 1: expected an answer in one of the fields"),
    ],
)
def test_mistakes_in_answers(tmp_path, record, message):
    path = write_jsonl(tmp_path / "gpt.jsonl", [record])
    with pytest.raises(UserError, match=message):
        read_answers("gpt", path, ASKED)


# -- runs and servers ------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompt_format", "asked"), [("qa", "几？"), ("plain", "几。")])
def test_a_run_answers_in_its_own_format(tmp_path, byte_tokenizer, prompt_format, asked):
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "黄河", prompt_format)
    asked, calls = [Example(None, asked, "")], []
    found = ask_run("r", run, asked * 2, Sampling(), on=lambda: calls.append(1))
    assert found.answers == [Answer("黄河", "stop")] * 2 and len(calls) == 2
    assert found.source == f"run {run}, step 7, {prompt_format}"
    cut = ask_run("r", run, asked, Sampling(max_new_tokens=3))
    assert cut.answers == [Answer("黄", "length")]


def test_texts_do_not_depend_on_the_batch(tmp_path, byte_tokenizer, tiny_model):
    model = tiny_model(padded_vocab_size=320, block_size=64)
    run = save_run(tmp_path / "run", model, byte_tokenizer, "qa")
    sampling = Sampling(temperature=1.0, top_k=0, max_new_tokens=8, seed=3)
    one, three = (ask_run("r", run, ASKED, sampling, n).answers for n in (1, 3))
    assert one == three and len(set(one)) == 3


def client_of(server):
    return Client(server.base_url, timeout=5, warn=lambda line: None)


def test_a_server_gets_the_sampling_settings(serve, no_proxy):
    server = serve(good(" 黄河。\n"))
    sampling = Sampling(0.5, 20, 0.9, 1.1, 99, 7)
    found = ask_server("s", client_of(server), None, ASKED, sampling)
    assert found.answers == [Answer("黄河。", "stop")] * 3 and not found.notes
    assert found.source.endswith("/v1, model scripted")
    bodies = [asked.body for asked in server.seen]
    assert [body["messages"] for body in bodies] == [
        [{"role": "user", "content": example.prompt}] for example in ASKED
    ]
    for number, body in enumerate(bodies):
        given = dict(temperature=0.5, top_k=20, top_p=0.9, repetition_penalty=1.1, max_tokens=99)
        assert given.items() <= body.items() and body["seed"] == 7 + number
    ask_server("s", client_of(server), None, ASKED, Sampling(top_k=0))
    assert not {"top_k", "repetition_penalty"} & set(server.seen[-1].body)


def test_a_question_that_failed_is_asked_once_more(serve, no_proxy):
    script = {1: error(503, "overloaded"), 2: good("二", "length")}
    server = serve(script=lambda asked: script.get(asked.number, good("好")))
    found = ask_server("s", client_of(server), None, ASKED, Sampling())
    assert [answer.text for answer in found.answers] == ["好", "二", "好"] and not found.notes
    assert found.answers[1].finish_reason == "length"


def test_a_server_that_is_down_is_named(serve, no_proxy):
    server = serve(good("好"))
    client = client_of(server)
    server.die()
    for model, notes in ((None, "not asked: refused"), ("m", "no answer to 1, 2, 3: refused")):
        found = ask_server("s", client, model, ASKED, Sampling())
        assert found.answers == [None] * 3
        assert len(found.notes) == 1 and found.notes[0].startswith(notes)


def test_a_server_that_goes_down_keeps_its_answers(serve, no_proxy):
    server = serve(script=lambda asked: good("好") if asked.number < 3 else error(401, "bad key"))
    found = ask_server("s", client_of(server), "scripted", ASKED, Sampling())
    assert [bool(answer) for answer in found.answers] == [True, True, False]
    assert len(found.notes) == 1 and "no answer to 3: " in found.notes[0]
    assert len(server.seen) == 3  # a wrong key is wrong the second time, too


def test_a_server_with_several_models_must_be_told_which(serve, no_proxy):
    server = serve(good("好"), models=("one", "two"))
    found = ask_server("s", client_of(server), None, ASKED, Sampling())
    assert found.notes == ["not asked: it has the models one, two: name one in endpoints.csv"]


# -- figures ---------------------------------------------------------------------------------------


def test_the_figures_by_hand():
    # Ten words, seven 4-grams: 一二三四 occurs twice, so 1 of 7 occurred before, 2 of 7 recur.
    text = "一 二 三 四 五 六 一 二 三 四"
    found = measure(text)
    assert found == dict(
        characters=19, repeated_4=pytest.approx(1 / 7), recurring_4=pytest.approx(2 / 7)
    )
    assert measure("黄河", "黄河")["rouge_l_chars"] == pytest.approx(1)
    models = [
        ModelAnswers("m", "file", [Answer("黄河", "stop"), Answer(text, "length"), Answer("")]),
        ModelAnswers("n", "server", [None, None, None], ["not asked: refused"]),
    ]
    rows = measured(models, ASKED)
    assert [(row["number"], row["model"]) for row in rows] == [
        (number, name) for number in (1, 2, 3) for name in "mn"
    ]
    first, second = summaries(models, rows)
    assert (first["asked"], first["answers"], first["empty"], first["cut"]) == (3, 3, 1, 1)
    assert first["characters"] == pytest.approx((2 + 19) / 3)
    assert first["rouge_l_chars"] == pytest.approx(1 / 2)  # of the two that have a reference
    assert first["repeated_4"] == pytest.approx(1 / 21)
    assert (second["answers"], second["characters"], second["rouge_l_words"]) == (0, None, None)


# -- tables ----------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The tags of a page, and the texts of its cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


@pytest.fixture
def results():
    models = [
        ModelAnswers("<b>m", "run <i>", [Answer(HOSTILE, "stop"), Answer("", "stop"), None]),
        ModelAnswers("n|", "file", [Answer("黄河"), Answer("好"), Answer("长")]),
    ]
    rows = measured(models, ASKED)
    return rows, summaries(models, rows)


def test_a_page_shows_hostile_answers_as_text(results):
    page = Page(as_html("<script>", *results))
    allowed = {"html", "meta", "title", "style", "h1", "table", "tr", "th", "td", "p"}
    assert page.tags == allowed
    for text in (HOSTILE, "<b>m", "n|", "几？", "(empty)", "(no answer)", "黄河\n[1.000]"):
        assert any(cell.startswith(text) for cell in page.cells), text


def test_markdown_has_a_cell_for_each_answer(results):
    text = as_markdown("#1", *results)
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.M)
    assert len(tables) == 2
    for table, width in zip(tables, (7, 5), strict=True):
        for line in table.splitlines():
            assert len(re.findall(r"(?<!\\)\|", line)) == width + 1, line
    assert (
        not re.search(r"(?<!\\)<(?!br>)", text)
        and r"\<script\>alert(1)\</script\> \| \*\*粗\*\*" in text
    )
    assert "<br>\\[link\\]" in text and "| 黄河<br>\\[1.000\\] |" in text


def test_the_terminal_gets_a_line_for_each_answer(results):
    lines = as_lines(*results).splitlines()
    assert (lines[0] == "1. 几？" and lines[1] == "   reference  黄河") or lines[1].endswith("黄河")
    shown = [line for line in lines if line.startswith("   <b>m")]
    assert len(shown) == 3 and "第二行" in shown[0] and "(empty)" in shown[1]
    assert "1 empty answers: the model ended at once" in lines[-2]


# -- the script ------------------------------------------------------------------------------------


def compare(*words):
    return run_here("tools/compare.py", *words)


def test_runs_servers_and_files_side_by_side(tmp_path, byte_tokenizer, serve, no_proxy):
    first = save_scripted_run(tmp_path / "out" / "a", byte_tokenizer, "黄河")
    again = save_scripted_run(tmp_path / "other" / "a", byte_tokenizer, "长江")
    server = serve(good("孔子"))
    asked = [{"question": "几？", "answer": "黄河"}, {"question": "谁？", "answer": "孔子"}]
    questions = write_jsonl(tmp_path / "asked.jsonl", asked)
    answers = write_jsonl(tmp_path / "gpt.jsonl", asked)
    (tmp_path / "servers.csv").write_text(
        f"name,base_url,model,api_key_env\nlab,{server.base_url},scripted,\n"
        "down,http://127.0.0.1:9,m,\nkey,http://127.0.0.1:9,m,NO_SUCH_KEY_9\n",
        encoding="utf-8",
    )
    output = tmp_path / "result"
    words = [f"--runs={first},{again}", f"--questions={questions}", f"--answers={answers}"]
    words += [f"--endpoints={tmp_path / 'servers.csv'},{server.base_url}", f"--output={output}"]
    code, out, err = compare(*words, "--device=cpu")
    assert code == 0 and "answers: 12 of 12" in err
    figures = json.loads((output / "compare.json").read_text(encoding="utf-8"))["models"]
    address = server.base_url.split("/")[2]
    names = ["a", "a-2", "lab", "down", "key", address, "gpt"]
    assert [each["model"] for each in figures] == names
    assert [each["answers"] for each in figures] == [2, 2, 2, 0, 0, 2, 2]
    rouge = [each["rouge_l_chars"] for each in figures]
    assert rouge == [*map(pytest.approx, (0.5, 0, 0.5)), None, None, *map(pytest.approx, (0.5, 1))]
    assert "nothing listens there" in figures[3]["notes"][0]
    assert "NO_SUCH_KEY_9 is not set" in figures[4]["notes"][0]
    for name in ("md", "html"):
        assert "孔子" in (output / f"compare.{name}").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (output / "compare.jsonl").open(encoding="utf-8")]
    assert len(rows) == 14 and rows[0]["answer"] == "黄河"
    assert re.search(r"\na +2 of 2 ", out) and "down: server" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to compare: expected --runs, --endpoints or --answers"),
        (["--runs=nowhere"], "nowhere: no trained run here"),
        (["--runs=nowhere", "--temperature=-1"], "--temperature=-1.0: expected"),
        (["--runs=nowhere", "--questions=nine"], "questions=nine: no such file"),
        (["--answers=nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--endpoints=nowhere.csv"], "nowhere.csv: cannot be read"),
        (["--endpoints=ftp://x"], "base_url"),
    ],
)
def test_mistakes_in_the_settings(words, message):
    code, _, err = compare(*words)
    assert code == 2 and message in err and err.count("\n") == 1
