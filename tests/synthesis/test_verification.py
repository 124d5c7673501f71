"""Planted errors, and the bench that measures what finds them. The judge is tested where it is
used: tests/scripts/test_sft_faults.py."""

import json
import re
from collections import Counter

import pytest
from scripted_server import ScriptedServer, good
from tiny_run import run_here, write_jsonl

from minigpt.data.formats import Pair
from minigpt.synthesis.verification.planted import KINDS, plant_errors

TEXTS = [
    dict(
        id="1",
        title="都江堰",
        text="都江堰建于公元前256年，由李冰主持修建，是世界最大的无坝引水工程。",
    ),
    dict(id="2", title="赵州桥", text="赵州桥由李春设计，建于隋朝，全长64米，没有桥墩。"),
]
PAIRS = [
    Pair("1", "都江堰建于哪一年？", "公元前256年。"),
    Pair("1", "都江堰由谁主持修建？", "由李冰主持修建。"),
    Pair("1", "都江堰是什么工程？", "是世界最大的无坝引水工程。"),
    Pair("2", "赵州桥由谁设计？", "由李春设计。"),
    Pair("2", "赵州桥有桥墩吗？", "没有桥墩。"),
]


def test_each_kind_of_error_changes_what_is_said():
    found = plant_errors(PAIRS, seed=1)
    assert {kind for kind, _ in found} == set(KINDS)
    right = {pair.question: pair for pair in PAIRS}
    for kind, pair in found:
        answer = right[pair.question].answer
        assert pair.answer != answer and pair.id == right[pair.question].id
        if kind == "number":
            assert re.sub(r"\d+", "0", pair.answer) == re.sub(r"\d+", "0", answer)
        owners = {other.id for other in PAIRS if other.answer == pair.answer}
        wanted = {"another text": {"1", "2"} - {pair.id}, "another question": {pair.id}}
        assert owners == wanted.get(kind, set())
    assert ("opposite", PAIRS[4]._replace(answer="有桥墩。")) in found
    assert plant_errors(PAIRS, seed=1) == found


@pytest.mark.usefixtures("no_proxy")
def test_the_bench_counts_rules_and_judge(tmp_path):
    """A judge that knows all answers finds every error, and the rules those of other texts."""
    source = write_jsonl(tmp_path / "texts.jsonl", TEXTS)
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [pair._asdict() for pair in PAIRS])
    right = {(pair.question, pair.answer) for pair in PAIRS}

    def judge(asked):
        _, question, answer = re.search(r"(\d+)\. 问：(.*)\n +答：(.*)", asked.text).groups()
        follows = "yes" if (question, answer) in right else "no"
        return good(json.dumps([dict(n=1, follows=follows, quote=answer)], ensure_ascii=False))

    words = [f"--source={source}", f"--input={pairs}", "--workers=1"]
    with ScriptedServer(judge) as server:
        code, out, err = run_here("bench/judge.py", *words, f"--base_url={server.base_url}")
    assert code == 0, err
    cells = {re.split("  +", line)[0]: re.split("  +", line)[1:] for line in out.splitlines()}
    n = Counter(kind for kind, _ in plant_errors(PAIRS))
    assert cells["right, dropped by mistake"] == ["5", "0.0%", "0.0%", "0.0%"]
    assert cells["another question"][1:3] == ["0.0%", "100.0%"]
    assert cells["number"] == [str(n["number"]), "100.0%", "100.0%", "100.0%"]
    assert cells["recall"][2:] == cells["precision"][-2:] == ["100.0%", "100.0%"]
