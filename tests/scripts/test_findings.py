"""The findings: verdicts worked by hand, what each experiment runs, and some of them run through.

python -m pytest tests/scripts/test_findings.py
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import run_here, save_scripted_run, write_jsonl

from config.configurator import configure
from findings import measures
from findings.claims import (
    FAILS,
    HOLDS,
    T95,
    UNDECIDED,
    Arm,
    Check,
    Judgement,
    judge,
    verdict,
)
from findings.experiments import (
    KINDS,
    Continued,
    Lab,
    PairsAbout,
    Resized,
    Run,
    Source,
    places,
)
from findings.figure import finding_figure
from findings.run import FINDINGS, draw, logs
from findings.runs import BASE, CPU, GPU, SCALES, SFT, TEST, WIKI
from minigpt.common.errors import UserError

BY_NAME = {finding.name: finding for finding in FINDINGS}


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    """Where a Lab is used."""
    monkeypatch.chdir(ROOT)


# -- verdicts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "within", "difference", "half", "expected"),
    [
        # differences 1, 2, 3: mean 2, s = 1, half = 2.920 / √3
        ([1, 1, 1], [2, 3, 4], None, 2, 1.6859, HOLDS),
        ([2, 3, 4], [1, 1, 1], None, -2, 1.6859, FAILS),
        # 0, 2, 4: the same mean, s = 2
        ([1, 1, 1], [1, 3, 5], None, 2, 3.3717, UNDECIDED),
        # seeds that differ much among themselves, and by the same between the arms
        ([1, 50, 900], [2, 51, 901], None, 1, 0, HOLDS),
        ([5, 5, 5], [5, 5, 5], None, 0, 0, UNDECIDED),
        ([5, 5], [6, 8], None, 2, 6.314, UNDECIDED),  # two seeds: 6.314 · √2 / √2
        # -0.1, 0, 0.1: within 0.3 of 10, not shown to be within 0.1
        ([10.1, 10, 9.9], [10, 10, 10], 0.03, 0, 0.1686, HOLDS),
        ([10.1, 10, 9.9], [10, 10, 10], 0.01, 0, 0.1686, UNDECIDED),
        ([9, 9, 9], [10, 10, 10], 0.03, 1, 0, FAILS),
        ([11, 11, 11], [10, 10, 10], 0.03, -1, 0, FAILS),
        # beyond the margin on average, but not by more than its interval
        ([9, 10, 10], [10, 10, 10], 0.03, 1 / 3, 0.9733, UNDECIDED),
        ([1], [2], None, 1, None, UNDECIDED),
        ([1, math.inf, 1], [2, 2, 2], None, -math.inf, None, UNDECIDED),
    ],
)
def test_a_check_is_judged_as_by_hand(low, high, within, difference, half, expected):
    found = judge(Check("m", "a", "b", within), {"m": {"a": low, "b": high}})
    assert found.difference == pytest.approx(difference)
    assert found.half == (None if half is None else pytest.approx(half, abs=1e-3))
    assert found.verdict == expected


def test_an_arm_is_held_against_a_number():
    values = {"m": {"a": [0.2, 0.21, 0.22]}}
    assert judge(Check("m", 0.0, "a"), values).verdict == HOLDS
    assert judge(Check("m", "a", 0.0), values).verdict == FAILS
    assert judge(Check("m", "a", 0.2, within=0.25), values).verdict == HOLDS


three = st.lists(st.floats(-100, 100), min_size=3, max_size=3)


@given(three, three)
def test_what_holds_one_way_fails_the_other(a, b):
    values = {"m": {"a": a, "b": b}}
    there, back = judge(Check("m", "a", "b"), values), judge(Check("m", "b", "a"), values)
    turned = {HOLDS: FAILS, FAILS: HOLDS, UNDECIDED: UNDECIDED}
    assert back.verdict == turned[there.verdict]


def test_students_t_is_what_its_density_says():
    """The integral of the density up to each value of T95, by the trapezoid rule: 0.95."""
    for i, t in enumerate(T95):
        n = i + 1
        xs = np.linspace(0, t, 20_001)
        ys = (1 + xs * xs / n) ** (-(n + 1) / 2)
        scale = math.gamma((n + 1) / 2) / (math.sqrt(n * math.pi) * math.gamma(n / 2))
        area = scale * float(((ys[1:] + ys[:-1]) / 2 * np.diff(xs)).sum())
        assert 0.5 + area == pytest.approx(0.95, abs=1e-4), n


def test_chance_makes_a_difference_in_one_experiment_of_twenty_each_way():
    dice = np.random.default_rng(0)
    found = [
        judge(Check("m", "a", "b"), {"m": {"a": list(a), "b": list(b)}}).verdict
        for a, b in dice.normal(size=(2000, 2, 3))
    ]
    assert 0.03 < found.count(HOLDS) / 2000 < 0.07
    assert 0.03 < found.count(FAILS) / 2000 < 0.07


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, UNDECIDED], UNDECIDED),
        ([HOLDS, FAILS], FAILS),
        ([UNDECIDED, FAILS], FAILS),
        ([UNDECIDED], UNDECIDED),
    ],
)
def test_a_claim_holds_where_all_of_it_does(parts, whole):
    assert verdict([Judgement(0.0, 0.0, part) for part in parts]) == whole


# -- the texts -------------------------------------------------------------------------------------


def test_missing_data_is_replaced_by_the_sample(tmp_path):
    (tmp_path / "qa").mkdir()
    (tmp_path / "bbc").mkdir()  # without its table
    assert places() == {"wiki": "data/sample", "qa": "sft/sft_saves.jsonl"}
    pairs = (tmp_path / "qa").as_posix()
    assert places(tmp_path) == places() | {"qa": pairs}
    with pytest.raises(UserError, match=r"expected a folder that has some of wiki, qa, bbc"):
        places(tmp_path / "nowhere")


def test_a_finding_says_what_it_lacks(tmp_path):
    message = f"classification needs .*give --input=FOLDER that has {KINDS['bbc'][0]}"
    with pytest.raises(UserError, match=message):
        BY_NAME["classification"].measure(Lab(tmp_path, TEST, places()), [1])


def test_some_texts_are_drawn_once_and_never_taken_for_others(tmp_path):
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name}{i}。"} for i in range(90)])
    labs = [Lab(tmp_path / "lab", TEST, {"wiki": str(tmp_path / f"{n}.jsonl")}) for n in "ab"]
    source = Source("wiki", count="few_entries")
    drawn = Path(source.make(labs[0])).read_text(encoding="utf-8")
    assert drawn.count("\n") == TEST.counts["few_entries"]
    assert Path(source.make(labs[0])).read_text(encoding="utf-8") == drawn
    with pytest.raises(UserError, match=r"wiki\+few_entries\.jsonl: was made by another command"):
        source.make(labs[1])


def test_a_part_of_the_texts_and_the_pairs_about_it(tmp_path):
    write_jsonl(tmp_path / "wiki.jsonl", [{"id": f"w{i}", "text": f"第{i}篇。"} for i in range(30)])
    pairs = [{"id": f"w{i % 30}", "question": f"{i}？", "answer": "是。"} for i in range(60)]
    write_jsonl(tmp_path / "qa.jsonl", [*pairs, {"id": "x", "question": "谁？", "answer": "他。"}])
    found = {kind: str(tmp_path / f"{kind}.jsonl") for kind in ("wiki", "qa")}
    lab, part = Lab(tmp_path / "lab", CPU, found), Source("wiki", part=1 / 3)

    def ids(source):
        lines = Path(source.make(lab)).read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["id"] for line in lines]

    chosen = ids(part)
    assert len(chosen) == len(set(chosen)) == 10
    assert sorted(ids(PairsAbout(part))) == sorted([*chosen, *chosen])
    write_jsonl(tmp_path / "qa.jsonl", [{"id": "x", "question": "谁？", "answer": "他。"}])
    with pytest.raises(
        UserError, match=r"qa\.jsonl: no pair has the id of a text of .*wiki\+0\.333"
    ):
        PairsAbout(part).make(Lab(tmp_path / "other", CPU, found))


# -- what the findings run -------------------------------------------------------------------------


class Recorder(Lab):
    """A Lab that writes down each command in place of running it."""

    def __init__(self, folder, scale):
        stand_ins = dict.fromkeys(KINDS, "data/sample")
        super().__init__(folder, scale, stand_ins | places())
        self.commands = {}

    def once(self, made, *words, resume=None, remove=None):
        self.commands[Path(made).as_posix()] = words


def training(folder, scale, run, seed=1):
    """The words with which `run` is trained, but for the ones that name its data and folder."""
    lab = Recorder(folder, scale)
    made = run.make(lab, seed)
    return [w for w in lab.commands[made.as_posix()] if not w.startswith(("--out_dir", "--dat"))]


def test_there_are_twenty_five_and_each_is_whole():
    assert [finding.number for finding in FINDINGS] == list(range(1, 26))
    assert len(BY_NAME) == 25
    for finding in FINDINGS:
        assert re.match(r"[ABCDE]: .+\.", finding.source), finding.name
        assert re.search(r"\(.*[ABCDE]\b.*\)", finding.claim), finding.name
        assert finding.checks
        for check in finding.checks:
            assert check.measure in finding.measures
            for side in (check.low, check.high):
                assert isinstance(side, float) or side in finding.arms, (finding.name, side)


def trained_things(finding):
    """Every run of a finding, bases too."""
    found = [arm.made_of for arm in finding.arms.values()]
    for made in found:
        found += [made.run] if hasattr(made, "run") else []
        found += [made.start] if hasattr(made, "start") else []
        found += [made.base] if getattr(made, "base", None) else []
    return found


@pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
def test_every_training_is_one_that_train_py_can_have(scale, tmp_path, monkeypatch):
    """Its words are read by the configurator; and runs of one name are one run."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    seen = {}
    for finding in FINDINGS:
        for made in trained_things(finding):
            # A Resized base has to be there before it is resized: other_blocks is run through.
            if isinstance(made, Run) and not isinstance(made.base, Resized):
                lab = Recorder(tmp_path, scale)
                folder = made.make(lab, 1)
                words = lab.commands[folder.as_posix()]
                assert words[0] == "train.py"
                settings = configure(shared="all", argv=list(words[1:]), quiet=True)
                assert settings.out_dir == folder.as_posix()
                assert seen.setdefault(made.name, words) == words, made.name
                assert re.fullmatch(r"[^/\\:*?\"<>|,]{1,90}", made.name), made.name
    assert len(seen) == 52


@pytest.mark.parametrize(
    ("a", "b", "only_a", "only_b"),
    [
        (BASE, BY_NAME["in_order"].arms["in order"].made_of, [], ["--if_trav=true"]),
        (
            BY_NAME["learning_rates"].arms["1e-3"].made_of,
            BY_NAME["learning_rates"].arms["1e-4"].made_of,
            ["--learning_rate=1e-3"],
            ["--learning_rate=1e-4"],
        ),
        (
            BY_NAME["batches"].arms["8, equal blocks"].made_of,
            BY_NAME["batches"].arms["32, both"].made_of,
            ["--batch_size=8", "--max_iters=240"],
            ["--batch_size=32", "--max_iters=60", "--warmup_iters=25"],
        ),
        (
            BY_NAME["batches"].arms["8, equal steps"].made_of,
            BY_NAME["batches"].arms["32, both"].made_of,
            ["--batch_size=8"],
            ["--batch_size=32"],
        ),
        (
            BY_NAME["tuning_layouts"].arms["concat"].made_of,
            BY_NAME["tuning_layouts"].arms["concat, isolated"].made_of,
            ["--isolate=false"],
            [],
        ),
        (
            BY_NAME["more_text"].arms["a sixth, equal passes"].made_of.base,
            BY_NAME["more_text"].arms["a sixth, equal steps"].made_of.base,
            ["--max_iters=40", "--warmup_iters=17"],
            ["--max_iters=240"],
        ),
        (
            BY_NAME["block_sizes"].arms["128"].made_of,
            BY_NAME["block_sizes"].arms["512, a third"].made_of,
            ["--batch_size=16", "--block_size=128", "--max_iters=240"],
            ["--batch_size=4", "--block_size=512", "--max_iters=80", "--warmup_iters=33"],
        ),
        (
            BY_NAME["epochs"].arms["4"].made_of,
            BY_NAME["epochs"].arms["12"].made_of,
            ["--epochs=4"],
            ["--epochs=12"],
        ),
        (
            BY_NAME["dpo"].arms["β 0.1, lr 1e-3"].made_of,
            BY_NAME["dpo"].arms["β 0.01, lr 1e-3"].made_of,
            ["--dpo_beta=0.1"],
            ["--dpo_beta=0.01"],
        ),
    ],
)
def test_arms_differ_in_what_the_claim_is_about(a, b, only_a, only_b, tmp_path):
    a, b = (training(tmp_path, CPU, run) for run in (a, b))
    assert sorted(set(a) - set(b)) == only_a
    assert sorted(set(b) - set(a)) == only_b


def test_a_seed_goes_through_the_whole_way(tmp_path):
    lab = Recorder(tmp_path, CPU)
    SFT.make(lab, 7)
    runs = [words for words in lab.commands.values() if words[0] == "train.py"]
    assert len(runs) == 2 and all("--seed=7" in words for words in runs)
    base, tuned = runs
    assert f"--init_from={base[-1].partition('=')[2]}" in tuned


def test_the_layouts_are_judged_over_the_same_text():
    of_arms = [arm.asked.get("over", arm.made_of.data) for arm in BY_NAME["layouts"].arms.values()]
    assert {over.name for over in of_arms} == {WIKI.name}


def test_the_gpu_trains_the_124m_shape(tmp_path):
    words = training(tmp_path, GPU, BASE)
    settings = configure(shared="all", argv=words[1:], quiet=True)
    assert (settings.n_layer, settings.n_head, settings.n_embd) == (12, 12, 768)


# -- each thing once -------------------------------------------------------------------------------

SCRIPT = """
import pathlib, sys
with open({ran!r}, "a") as file:
    print(*sys.argv[1:], file=file)
sys.exit({code})
"""


@pytest.fixture
def script(tmp_path):
    """script(code): a script that notes its words in ran.txt and ends with this exit code."""

    def write(code):
        path = tmp_path / "script.py"
        path.write_text(SCRIPT.format(ran=str(tmp_path / "ran.txt"), code=code), encoding="utf-8")
        return str(path)

    return write


def test_what_is_finished_is_not_made_again(tmp_path, script):
    output, lab = [], None
    for _ in range(2):  # the second Lab finds what the first one made
        lab = Lab(tmp_path, TEST, {}, say=output.append)
        lab.once(tmp_path / "made", script(0), "--a=1")
    assert (tmp_path / "ran.txt").read_text().split() == ["--a=1"]
    assert output == [f"$ python {tmp_path / 'script.py'} --a=1"]
    with pytest.raises(UserError, match="was made by another command"):
        lab.once(tmp_path / "made", script(0), "--a=2")


def test_failures_are_reported_and_interrupted_runs_continue(tmp_path, script):
    lab = Lab(tmp_path, TEST, {}, say=lambda line: None)
    words = [script(3), "--out_dir=x"]
    with pytest.raises(UserError, match=r"exit code 3: no output"):
        lab.once(tmp_path / "made", *words, resume=[words[0], "again"])  # nothing to resume yet
    script(0)
    for _ in range(2):  # the second time it is finished
        lab.once(tmp_path / "made", *words, resume=[words[0], "again"])
    lines = (tmp_path / "ran.txt").read_text().splitlines()
    assert lines == ["--out_dir=x", "again --out_dir=x"]


def test_what_a_script_would_not_write_over_is_removed_before_it_runs(tmp_path, script):
    lab, other = Lab(tmp_path, TEST, {}, say=lambda line: None), tmp_path / "pairs.jsonl"
    other.write_text("of a run that was killed")
    lab.once(tmp_path / "made", script(0), remove=other)
    assert not other.exists()
    other.write_text("made")
    lab.once(tmp_path / "made", script(0), remove=other)
    assert other.read_text() == "made"


WAITING = """
import pathlib, sys, time
sys.path.insert(0, {root!r})
from findings.experiments import Lab
from findings.runs import TEST

folder = pathlib.Path({folder!r})

class Slow(Lab):
    def call(self, log, *words):
        print("at work", flush=True)
        while not (folder / "may_end").exists():
            time.sleep(0.01)

Slow(folder, TEST, {{}}).once(folder / "made", "s.py", "--a=1")
"""


def test_one_process_makes_it_and_the_others_wait(tmp_path):
    """Two at once: the script runs once, and the second process waits until it ends."""
    messages = []

    def say(line):
        messages.append(line)
        (tmp_path / "may_end").touch()

    code = WAITING.format(root=str(ROOT), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "at work\n"
        Lab(tmp_path, TEST, {}, say=say).once(tmp_path / "made", "s.py", "--a=1")
        assert first.wait(60) == 0
    assert len(messages) == 1 and f"(process {first.pid} on" in messages[0]
    assert messages[0].endswith("is making it; waiting")
    assert not list(tmp_path.glob("*.lock"))


def test_a_note_with_the_place_that_a_script_had_before(tmp_path):
    """Scores of an out folder from before tools/ existed are used, not refused."""
    lab, made = Lab(tmp_path, TEST, {}), tmp_path / "made"
    for script in ("evaluations-repetition.py", "evaluations-perplexity.py"):
        note = dict(words=[script, "--seeds=1"], finished=True)
        (tmp_path / "made.made.json").write_text(json.dumps(note))
        moved = script == "evaluations-repetition.py"
        lab.once(made, f"tools/{script}" if moved else script, "--seeds=1")  # would fail if run
        with pytest.raises(UserError, match="was made by another command"):
            lab.once(made, "tools/evaluations-endings.py", "--seeds=1")


ENDED = """
import sys
sys.path.insert(0, {root!r})
import pathlib, signal
from findings.runs import TEST
from findings.experiments import Lab
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
Lab({folder!r}, TEST, {{}}).once(pathlib.Path({folder!r}) / "made", {script!r})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without a word")
def test_the_script_under_way_ends_with_the_experiment(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, pathlib, time\npathlib.Path({str(tmp_path / 'pid')!r}).write_text("
        "str(os.getpid()))\ntime.sleep(300)",
        encoding="utf-8",
    )
    code = ENDED.format(root=str(ROOT), folder=str(tmp_path), script=str(script))
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run.terminate()
        assert run.wait(60) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


# -- measures --------------------------------------------------------------------------------------


class Given:
    """A run that is there."""

    def __init__(self, folder, data=None):
        self.folder, self.data, self.name = folder, data, folder.name

    def make(self, lab, seed=None):
        return self.folder


@pytest.mark.parametrize(
    ("losses", "rebound", "fall", "rise"),
    [
        # the first is before any step
        ([9, 4, 3, 3.5, 3.2, 2, 2.5], 0.5, 1.5, 0.5),
        ([9, 4, 5, 4.5, 3, 2.5, 2], 1.0, 3.0, 0.0),
        ([9, 5, 4, 3, 2, 1], -1.0, 3.0, 0.0),
    ],
)
def test_what_a_curve_does_is_read_from_the_log(losses, rebound, fall, rise, tmp_path):
    lines = [
        dict(step=i, tokens=i, minutes=i, val_loss=loss, best=False)
        for i, loss in enumerate(losses)
    ]
    write_jsonl(tmp_path / "log.jsonl", lines)
    arm = Arm(Given(tmp_path))
    assert measures.rebound(None, arm, 1) == pytest.approx(rebound)
    assert measures.fall(None, arm, 1) == pytest.approx(fall)
    assert measures.rise(None, arm, 1) == pytest.approx(rise)


@pytest.mark.parametrize(
    ("text", "count"),
    [("黄河（）是河", 1), ("（，；）和( )", 2), ("（又称）(a)", 0), ("（", 0)],
)
def test_empty_brackets_are_counted(text, count):
    assert len(measures.EMPTY.findall(text)) == count


def test_errors_on_digits_and_on_others(tmp_path, byte_tokenizer):
    """A run that writes 。ab1c2 for ever, over held-out text where it is right at a, b, c, 1 and
    wrong at 7 and x."""
    run = save_scripted_run(tmp_path / "run", byte_tokenizer, "ab1c2", "plain", cycle=True)
    write_jsonl(tmp_path / "val.jsonl", [{"id": "1", "text": "ab1c7xab"}])
    made = Given(run, Given(tmp_path))
    lab = Lab(tmp_path / "lab", TEST, {})
    found = {of: measures.token_errors(lab, Arm(made, of=of), 1) for of in ("digits", "others")}
    # Predicted are b 1 c 7 x a b: of the digits 1 right and 7 wrong, of the others x wrong, a
    # (after x, which the run does not know) wrong as well, and b c b right.
    assert found == {"digits": pytest.approx(1 / 2), "others": pytest.approx(2 / 5)}


# -- through to the end ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A Lab whose scripts run in this process; its table of news has two classes."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "texts" / "bbc").mkdir(parents=True)
    rows = [
        f"{label},{' '.join([word] * 9)} number {i} of {label} news"
        for label, word in (("sport", "ball"), ("tech", "chip"))
        for i in range(10)
    ]
    table = "\n".join(["category,content", *rows])
    (folder / "texts" / KINDS["bbc"][0]).write_text(table, encoding="utf-8")

    class Here(Lab):
        def call(self, log, *words):
            code, output, complaint = run_here(*words)
            assert code == 0, f"{words}: {complaint}"

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield Here(folder / "lab", TEST, places(folder / "texts"))


@pytest.mark.parametrize(
    "name",
    [
        "temperature",
        "more_text",
        "epochs",
        "tuning_layouts",
        "other_blocks",
        "long_tuning",
        "dpo",
        "classification",
        "rule_by_reward",
        "cheated_reward",
    ],
)
def test_a_finding_runs_through(name, lab, tmp_path):
    """Every measure gives a number for each of its arms; all shares lie between 0 and 1."""
    finding = BY_NAME[name]
    values = finding.measure(lab, [1337])
    assert list(values) == list(finding.measures)
    for measure, of_arm in values.items():
        for arm in {side for check in finding.checks if check.measure == measure for side in check}:
            assert not isinstance(arm, str) or arm in {measure, *of_arm}
        for found in of_arm.values():
            assert len(found) == 1 and math.isfinite(found[0])
            if not re.search("bits|perplexity|characters", measure):
                assert 0 <= found[0] <= 1, measure
    for check in finding.checks:
        assert judge(check, values).verdict == UNDECIDED  # one seed gives no interval
    if finding.curve:
        draw(finding, lab, [1337], dict(values=values, verdict=UNDECIDED), tmp_path)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_is_continued_is_the_longer_run(lab):
    short, long = (Run(WIKI, length=n, schedule="constant") for n in (1, 2))
    folders = [made.make(lab, 1337) for made in (Continued(short, 2), long)]
    a, b = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert a == b
    steps = [json.loads(line)["step"] for line in (folders[0] / "log.jsonl").open()]
    assert max(steps) == 12 and steps == sorted(steps)


def test_of_a_run_that_is_continued_the_last_log_counts(lab):
    of_arms = logs(BY_NAME["long_tuning"], lab, [1337])  # made by the test above it
    assert list(of_arms) == ["30 ×"]
    (log,) = of_arms["30 ×"]
    assert log.val["step"][-1] == 12


# -- the picture -----------------------------------------------------------------------------------


def test_the_picture_shows_every_seed_and_the_means():
    panels = {"bits/char": {"a": [1.0, 2.0, 6.0], "b": [4.0, 5.0, 6.0]}, "ability": {"b": [0.5]}}
    figure, notes = finding_figure("A finding", panels, {"a": [([0, 10], [3.0, 2.0])]})
    drawn = {line.get_gid(): line for line in figure.findobj(lambda part: part.get_gid())}
    assert list(drawn["seeds:bits/char:a"].get_xdata()) == [1, 2, 6]
    assert list(drawn["seeds:bits/char:a"].get_ydata()) == [0, 0, 0]
    assert list(drawn["mean:bits/char:a"].get_xdata()) == [3]
    assert list(drawn["mean:bits/char:b"].get_xdata()) == [5]
    assert list(drawn["mean:ability:b"].get_ydata()) == [1]
    assert list(drawn["curve:a:0"].get_ydata()) == [3, 2]
    assert "mean:ability:a" not in drawn and not notes


# -- run.py as its user runs it --------------------------------------------------------------------


def test_without_a_name_the_findings_are_listed(tmp_path):
    code, output, _ = run_here("findings/run.py", f"--report={tmp_path}")
    assert code == 0
    for finding in FINDINGS:
        assert re.search(rf"\b{finding.number}\b.*\b{finding.name}\b.*not run yet", output)
    assert "not run yet; needs --input with bbc" in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["layout"], "layout: no such finding; expected some of layouts, "),
        (["layouts", "--all"], "--all and names: expected one of them"),
        (["layouts", "--seeds=0"], "--seeds=0: expected 1 to 10"),
        (["layouts", "--scale=huge"], "huge"),
        (["layouts", "--input=nowhere"], "--input=nowhere: expected a folder that has some of"),
    ],
)
def test_a_mistake_is_one_line(words, message, tmp_path):
    code, _, complaint = run_here("findings/run.py", *words, f"--report={tmp_path}")
    assert code == 2 and message in complaint and "Traceback" not in complaint


def test_a_finding_is_run_once_and_its_row_says_what_was_measured(tmp_path, run_script):
    """numbers, in processes of its own, after one that cannot be run; then the same again, which
    runs nothing."""
    words = ["numbers", "--scale=test", "--seeds=1", f"--out_dir={tmp_path}"]
    (tmp_path / "README.md").write_text(
        "# Mine\n<!-- written by findings/run.py -->\nold\n<!-- end -->\nkept\n", encoding="utf-8"
    )
    first = run_script("findings/run.py", "classification", *words, timeout=1200)
    assert first.returncode == 2, first.stderr
    assert first.stderr.count("\n") == 1 and "classification needs a table" in first.stderr
    assert "$ python train.py config/cpu_small.py" in first.stdout
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    values = results["test"]["numbers"]["values"]["share of wrong tokens"]
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("# Mine\n") and readme.endswith("-->\nkept\n") and "old" not in readme
    (row,) = [
        line for line in readme.splitlines() if line.startswith("| 9 `numbers` | ") if "**" in line
    ]
    for arm, (value,) in values.items():
        assert f"{arm} → {value:.3g}" in row
    assert "**too small to tell** |" in row and "wiki (bundled)" in row
    assert (tmp_path / "numbers.png").read_bytes().startswith(b"\x89PNG")

    handler = signal.getsignal(signal.SIGTERM)
    code, again, _ = run_here("findings/run.py", *words)
    signal.signal(signal.SIGTERM, handler)
    assert code == 0 and "$ python" not in again
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == readme

    results["test"]["numbers"]["checks"][0]["says"] = "an older check"
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    _, output, _ = run_here("findings/run.py", "--scale=test", f"--report={tmp_path}")
    assert re.search(r"numbers +too small to tell, but the experiment has changed since", output)


def test_a_readme_without_its_marks_is_left_alone(tmp_path):
    from findings.run import write_readme

    path = tmp_path / "README.md"
    path.write_text("# Mine\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"expected one line <!-- written by findings/run\.py -->"):
        write_readme(path, {})
    assert path.read_text(encoding="utf-8") == "# Mine\n"


def test_the_readme_of_the_project_is_made_of_its_results(tmp_path):
    from findings.run import read_results, write_readme

    shipped = (ROOT / "findings" / "README.md").read_text(encoding="utf-8")
    path = tmp_path / "README.md"
    path.write_text(shipped, encoding="utf-8")
    write_readme(path, read_results(ROOT / "findings"))
    assert path.read_text(encoding="utf-8") == shipped


def test_the_documents_have_the_verdicts_of_the_results():
    from findings.run import changed, read_results

    results = read_results(ROOT / "findings")["cpu"]
    chinese = {HOLDS: "成立", FAILS: "不成立", UNDECIDED: "看不出来", "not rerun": "未重做"}
    for language in ("en", "zh"):
        text = (ROOT / "docs" / language / "findings.md").read_text(encoding="utf-8")
        rows = re.findall(r"^\| (\d+) \| `(\w+)` \| .* \| ([^|]+) \|$", text, re.M)
        assert [int(number) for number, _, _ in rows] == list(range(1, 26))
        for _, name, found in rows:
            result = results.get(name)
            state = result["verdict"] if result else "not rerun"
            if result and changed(BY_NAME[name], result):
                state = "not rerun"
            assert found == (state if language == "en" else chinese[state]), name
