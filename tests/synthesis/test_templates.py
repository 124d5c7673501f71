"""Templates: files written here, by hand, and those that come with the project."""

import hashlib
import json

import jsonschema_rs  # of schemathesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.data.pipeline import read_entries
from minigpt.synthesis.filters import Rules, filter_pairs
from minigpt.synthesis.parsing import QA, parse_reply
from minigpt.synthesis.templates import FOLDER, Template, load, schema

SMALL = """\
source: text
note: for tests
---
You write JSON: {"a": {}}.
---
Title: {title}

{n_min} to {n_max} of {question_max} and {answer_max}: {text}
"""
VALUES = dict(text="文。", title="题", n_min=3, n_max=6, question_max=15, answer_max=300)


@pytest.fixture
def written(tmp_path):
    """written(content) → the path of a prompt file."""

    def write(content):
        path = tmp_path / "small.md"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def user(template, **values):
    return template.messages(**{**VALUES, **values})[-1]["content"]


def test_a_template(written):
    template = load(written(SMALL))
    assert template[:1] + template[2:4] == ("small", "text", "for tests")
    assert not template.uses_previous
    assert template.messages(**VALUES) == [
        {"role": "system", "content": 'You write JSON: {"a": {}}.'},
        {"role": "user", "content": "Title: 题\n\n3 to 6 of 15 and 300: 文。"},
    ]


def test_the_version_is_of_what_is_sent(written):
    sent = 'text\n---\nYou write JSON: {"a": {}}.\n---\n' + SMALL.split("---\n")[2].strip()
    version = load(written(SMALL)).version
    assert version == hashlib.sha256(sent.encode()).hexdigest()[:12]
    for same in (
        SMALL.replace("\n", "\r\n").encode("utf-8-sig"),
        SMALL.replace("for tests", "for others"),
        SMALL.replace("\n", "  \n") + "\n\n",
    ):
        assert load(written(same)).version == version
    for other in (SMALL.replace("Title", "title"), SMALL.replace("source: text", "source: topic")):
        assert load(written(other)).version != version


def test_what_is_filled_in_is_not_filled_again(written):
    template = load(written(SMALL))
    assert user(template, text="{title}{x}\n\n{}\\1").endswith(": {title}{x}\n\n{}\\1")
    assert user(template, title="{text}").startswith("Title: {text}\n")


@given(st.text(), st.text())
def test_any_text_is_inserted_unchanged(text, title):
    parts = [f"Title: {title}"] * bool(title) + [f"3 to 6 of 15 and 300: {text}"] * bool(text)
    template = Template("x", "", "text", "", "", SMALL.split("---\n")[2].strip())
    messages = template.messages(**VALUES | dict(text=text, title=title))
    assert "".join(message["content"] for message in messages) == "\n\n".join(parts)


def test_a_paragraph_without_its_value_is_left_out(written):
    content = SMALL.replace("Title", "Before:\n{previous}\nand {n_min}.\n\nTitle")
    template = load(written(content))
    assert template.uses_previous
    assert user(template) == user(load(written(SMALL)))
    assert user(template, previous="a\n\nb").startswith("Before:\na\n\nb\nand 3.\n\nTitle: 题")
    assert user(template, title="").startswith("3 to 6")


def test_no_system_message(written):
    template = load(written(SMALL.replace('You write JSON: {"a": {}}.\n', "")))
    assert [message["role"] for message in template.messages(**VALUES)] == ["user"]


def test_a_user_message_may_hold_a_line(written):
    assert user(load(written(SMALL + "---\nend"))).endswith("文。\n---\nend")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (SMALL.replace("{title}", "{name}"), ["line 6: {name} is unknown", "{question_max}"]),
        (SMALL.replace("JSON", "{Text}"), ["line 4: {Text} is unknown"]),
        (SMALL.replace("{text}", "text"), ["nowhere is {text}", "source: topic"]),
        (SMALL.replace("---\nTitle", "Title"), ["three parts"]),
        ("", ["three parts"]),
        (SMALL.replace("source: text\n", ""), ["source: missing; expected text or topic"]),
        (SMALL.replace("source: text", "source: book"), ["source: book; expected text or topic"]),
        (SMALL.replace("note", "nota"), ["line 2: `nota: for tests`"]),
        (SMALL.replace("note: for tests", "source: text"), ["line 2: `source: text`", "once"]),
        (SMALL.replace("note: for tests", "note"), ["line 2: `note`"]),
        (SMALL.split("Title")[0], ["user message", "nowhere is {text}"]),
        (SMALL.replace("{title}", "{x} {x} {y}").replace("note", "n"), ["{x}", "{y}", "line 2"]),
        (b"source: text\n---\n\xff", ["cannot be read", "UTF-8"]),
    ],
)
def test_all_errors_are_reported_at_once(written, content, words):
    path = written(content)
    with pytest.raises(UserError) as caught:
        load(path)
    assert all(line.startswith(f"{path}: ") for line in str(caught.value).splitlines())
    assert all(word in str(caught.value) for word in words)


def test_no_such_prompt(tmp_path):
    with pytest.raises(UserError, match="no such prompt; there are facts, topic, wiki"):
        load(tmp_path / "absent.md")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path)


# -- those of the project --------------------------------------------------------------------------

PROMPTS = sorted(path.stem for path in FOLDER.glob("*.md"))


def test_all_prompts_are_tested():
    assert PROMPTS == ["facts", "topic", "wiki"]


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_of_the_project(name):
    template = load(FOLDER / f"{name}.md")
    assert template.source == ("topic" if name == "topic" else "text") and template.note
    assert template.uses_previous == (name == "topic")
    long = dict(text="岷江" * 50, title="都江堰堰", previous="写过的")
    prompt = "\n".join(
        m["content"] for m in template.messages(**{**VALUES, "answer_max": 777} | long)
    )
    wanted = ["岷江" * 50, "都江堰堰", "15个字", "777个字", "3到6"]
    assert all(word in prompt for word in wanted) and ("写过的" in prompt) == (name == "topic")
    assert "\n\n\n" not in prompt and "：\n\n" not in user(template)
    assert len(prompt) < 800  # small models read them, once an entry
    # The samples of JSON in it are such as a reply may have.
    assert all(isinstance(pair, QA) and all(pair) for pair in parse_reply(prompt))
    assert parse_reply(prompt)


def test_the_worked_example_keeps_the_rules():
    """And the pair that is shown as wrong breaks them."""
    prompt = user(load(FOLDER / "facts.md"))
    text = prompt.split("条目是“")[1].split("”")[0]
    *good, bad = parse_reply(prompt)
    assert filter_pairs(good, f"都江堰\n{text}", Rules(n_min=2)) == (good, [])
    findings = filter_pairs([bad], f"都江堰\n{text}", Rules(n_min=0))[1]
    assert {"pronoun", "number not in text"} <= {finding.rule for finding in findings}


def test_topics(root):
    topics = list(read_entries(root / "sft" / "topics.jsonl", clean="none"))
    assert len(topics) == 24 == len({topic.title for topic in topics})
    for topic in topics:
        question, answer = topic.text.removeprefix("问：").split("\n答：")
        assert filter_pairs([QA(question, answer)], None, Rules(n_min=1)) == (
            [(question, answer)],
            [],
        )


def test_schema():
    """Read as the standard says, by a checker that knows nothing of this project."""
    checker = jsonschema_rs.Draft202012Validator(schema(1, 2))
    pair = {"question": "a", "answer": "b"}
    assert checker.is_valid({"pairs": [pair]}) and checker.is_valid({"pairs": [pair, pair]})
    for wrong in (
        {"pairs": []},
        {"pairs": [pair] * 3},
        {"pairs": [{"question": "a"}]},
        {"pairs": [{**pair, "id": 1}]},
        {"pairs": [{**pair, "answer": 1}]},
        {"pairs": [pair], "facts": []},
        {},
        [pair],
    ):
        assert not checker.is_valid(wrong)
    assert json.loads(json.dumps(schema(1, 2))) == schema(1, 2)
    assert parse_reply(json.dumps({"pairs": [pair]})) == [QA("a", "b")]
