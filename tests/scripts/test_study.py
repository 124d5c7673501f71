"""A study: its plan, and that each trial runs once when processes join, die or resume.

python -m pytest tests/scripts/test_study.py        # skips where Optuna is not installed
"""

import collections
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from config.configurator import configure
from minigpt.common.errors import UserError
from tools import study as study_module
from tools.study import Plan, Study, TrialFailed, TrialStopped, read_plan, trial_name

optuna = pytest.importorskip("optuna", reason="a sweep needs it: pip install optuna")


def planned(grid=(), ranges=(), trials=0, **more):
    read = configure(shared="all", argv=[], quiet=True).read
    return read_plan(list(grid), list(ranges), trials, read, **more)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{(tmp_path / 'study.db').as_posix()}"


# -- the plan --------------------------------------------------------------------------------------


def test_a_grid_is_read_by_the_knobs_own_types():
    plan = planned(
        ["learning_rate=1e-3", "3e-4", "n_layer=2", "4", "epochs=none", "2", "bias=true"]
    )
    assert plan.grid == dict(
        learning_rate=(0.001, 0.0003), n_layer=(2, 4), epochs=(None, 2.0), bias=(True,)
    )
    assert type(plan.grid["n_layer"][0]) is int and plan.ranges == {}
    rows = [tuple(values.values()) for values in plan.combinations()]
    assert rows[:3] == [(0.001, 2, None, True), (0.001, 2, 2.0, True), (0.001, 4, None, True)]
    assert len(rows) == len(set(rows)) == 8 and plan.places() == plan.combinations()
    assert plan.combinations(["n_layer", "seed"]) == [{"n_layer": 2}, {"n_layer": 4}]
    assert planned(["lora_targets=q", "mlp"]).grid == dict(lora_targets=("q", "mlp"))


def test_a_range_is_two_numbers_of_the_knobs_type():
    plan = planned(["n_head=2", "4"], ["learning_rate=1e-4", "1e-2", "n_layer=2", "6"], 7)
    assert plan.ranges == dict(learning_rate=(0.0001, 0.01), n_layer=(2, 6))
    assert plan.names == ["n_head", "learning_rate", "n_layer"] and plan.places() == [{}] * 7


@pytest.mark.parametrize(
    ("grid", "ranges", "trials", "message"),
    [
        (["learning_rat=1"], [], 0, "--grid: unknown key learning_rat; did you mean learning_rate"),
        (["n_layer=2", "2.5"], [], 0, "--grid: n_layer=2.5: expected int"),
        (["1e-3"], [], 0, "--grid=1e-3: expected name=value,value"),
        (["n_layer=2", "n_layer=4"], [], 0, "--grid: n_layer: named twice"),
        (["learning_rate=1e-3", "0.001"], [], 0, "--grid: learning_rate: 0.001 is there twice"),
        (["out_dir=a"], [], 0, "--grid: out_dir: each has its own"),
        (["tokenizer=a/x.tiktoken", "b/x.tiktoken"], [], 0, "share the folder tokenizer=x"),
        (["n_layer=2"], ["n_layer=2", "4"], 3, "n_layer: is in --grid and --range"),
        ([], ["n_layer=2"], 3, "--range: n_layer=2: expected two numbers"),
        ([], ["n_layer=2", "3", "4"], 3, "--range: n_layer=2,3,4: expected two numbers"),
        ([], ["n_layer=4", "2"], 3, "--range: n_layer=4,2: expected two numbers, the lower"),
        ([], ["bias=false", "true"], 3, "--range: bias=false,true: expected two numbers"),
        ([], ["n_layer=2", "4"], 0, "--trials=20"),
        (["n_layer=2"], [], 3, "--trials: a grid has as many trials as combinations"),
        ([], [], 0, "nothing to try: write --grid"),
    ],
)
def test_plans_that_cannot_be(grid, ranges, trials, message):
    with pytest.raises(UserError) as caught:
        planned(grid, ranges, trials, barred={"out_dir": "each has its own"})
    assert len(str(caught.value).splitlines()) == 1 and message in str(caught.value)


def test_all_errors_are_reported_at_once():
    with pytest.raises(UserError) as caught:
        planned(["n_layr=2", "n_head=x"], ["bias=1", "2"])
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == [
        " unknown key n_layr; did you mean n_layer?",
        " n_head=x",
        " bias=1",
        " how many trials? Write --trials=20",
    ]


def test_what_trials_are_called():
    values = dict(learning_rate=0.001, epochs=None, bias=True, layout="pad", sample_prompt="a/b c,")
    name = "learning_rate=0.001+epochs=none+bias=true+layout=pad+sample_prompt=b_c_"
    assert trial_name(values) == name
    assert trial_name(dict(tokenizer="out\\v\\zh.40.tiktoken")) == "tokenizer=zh.40"
    assert trial_name(dict(init_from="out/v1.5")) == "init_from=v1.5"


@given(st.lists(st.tuples(st.floats(0, 1e9), st.integers()), unique=True, min_size=2))
def test_trials_of_other_numbers_have_other_names(rows):
    names = {trial_name(dict(learning_rate=a, n_layer=b)) for a, b in rows}
    assert len(names) == len(rows)
    assert not any(set(name) & set(' ,/\\:*?"<>|') for name in names)


# -- trials ----------------------------------------------------------------------------------------

GRID = Plan({"n_layer": (1, 2, 3), "bias": (True, False)})
RANGE = Plan({"bias": (True, False)}, {"learning_rate": (1e-4, 1e-1), "n_layer": (2, 50)}, 8)


class Train:
    """A training that only notes what it was asked for. `ends`: number of the call → what it
    raises."""

    def __init__(self, **ends):
        self.calls, self.ends = [], {int(n[1:]): error for n, error in ends.items()}

    def __call__(self, values):
        self.calls.append(values)
        if len(self.calls) in self.ends:
            raise self.ends[len(self.calls)]
        return values["n_layer"] + values["bias"] / 2, {"tokens": 10 * values["n_layer"]}


def test_a_grid_is_tried_once(url):
    train = Train()
    Study(url, "s", GRID).work(train)
    assert train.calls == GRID.combinations()
    Study(url, "s", GRID).work(train)
    assert len(train.calls) == 6
    trials = Study(url, "s", GRID).trials()
    assert [trial.values for trial in trials] == GRID.combinations()
    assert {trial.state for trial in trials} == {"finished"}
    assert [trial.score for trial in trials] == [1.5, 1, 2.5, 2, 3.5, 3]
    assert trials[2].figures == {"tokens": 20} and trials[2].name == "n_layer=2+bias=true"


def test_a_failed_trial_is_recorded_and_tried_again_when_asked(url):
    train = Train(n2=TrialFailed("the loss is nan"))
    Study(url, "s", GRID).work(train)
    Study(url, "s", GRID).work(train)
    assert train.calls == GRID.combinations()  # the others went on, and nothing came twice
    bad = Study(url, "s", GRID).trials()[1]
    assert (bad.state, bad.error, bad.score) == ("failed", "the loss is nan", None)
    study = Study(url, "s", GRID, retry=True)
    study.work(train)
    assert train.calls[6:] == [bad.values]
    assert study.trials()[1].score == 1 and len(study.trials()) == 6
    Study(url, "s", GRID, retry=True).work(train)
    assert len(train.calls) == 7


@pytest.mark.parametrize("plan", [GRID, RANGE])
def test_what_was_stopped_comes_again_with_its_values(url, plan):
    train = Train(n2=TrialStopped())
    Study(url, "s", plan).work(train)
    assert len(train.calls) == len(plan.places()) + 1
    assert train.calls[-1] == train.calls[1]  # at the end of the queue
    assert {trial.state for trial in Study(url, "s", plan).trials()} == {"finished"}


def test_what_was_stopped_may_be_taken_at_once(url, monkeypatch):
    """By another process, while the one that stopped has not yet ended its trial."""
    put_back, other = study_module._put_back, Train()

    def taken_at_once(study, trial):
        put_back(study, trial)
        Study(url, "s", GRID).work(other, nobody_waits)

    monkeypatch.setattr(study_module, "_put_back", taken_at_once)
    train = Train(n2=TrialStopped())
    Study(url, "s", GRID).work(train)
    first, *others = GRID.combinations()
    assert train.calls == [first, others[0]] and other.calls == [*others[1:], others[0]]


def nobody_waits(seconds):
    assert seconds == 0, "no other process has a trial"


def test_two_processes_that_queue_the_same_trials(url):
    """Both found the queue empty: each combination waits in it twice."""
    study, train = Study(url, "s", GRID), Train()
    study._fill()
    for place, values in enumerate(GRID.combinations()):
        study._study.enqueue_trial(values, user_attrs={"slot": [place, 0]})
    for _ in range(2):
        study.work(train, nobody_waits)
    while study._study.get_trials(states=[optuna.trial.TrialState.WAITING]):
        study._study.optimize(lambda trial: study._try(train, trial), 1)
    assert train.calls == GRID.combinations() and len(study.trials()) == 6


@pytest.mark.parametrize("plan", [GRID, RANGE])
def test_ctrl_c_puts_its_trial_back(url, plan):
    train, n = Train(n3=KeyboardInterrupt()), len(plan.places())
    study = Study(url, "s", plan)
    with pytest.raises(KeyboardInterrupt):
        study.work(train)
    states = collections.Counter(trial.state for trial in study.trials())
    assert states == {"finished": 2, "waiting": n - 2}
    study.work(train)
    assert len(train.calls) == n + 1 and train.calls.count(train.calls[2]) == 2
    assert [trial.state for trial in study.trials()] == ["finished"] * n


def test_a_range_is_drawn_within_its_bounds_and_resumes(url, tmp_path):
    train = Train(n4=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        Study(url, "s", RANGE).work(train)
    Study(url, "s", RANGE).work(train)
    drawn = [trial.values for trial in Study(url, "s", RANGE).trials()]
    assert len(drawn) == len({trial_name(values) for values in drawn}) == 8
    for values in drawn:
        assert list(values) == ["bias", "learning_rate", "n_layer"]
        assert 1e-4 <= values["learning_rate"] <= 1e-1 and values["n_layer"] in range(2, 51)
        assert float(f"{values['learning_rate']:.2e}") == values["learning_rate"]
    # From the logarithm: half of the rates lie below 3e-3, not a thirtieth.
    assert 1 <= sum(values["learning_rate"] < 3e-3 for values in drawn) <= 7
    assert len({values["bias"] for values in drawn}) == 2
    # More trials later; and another study of the same seed draws the same.
    more = Plan(RANGE.grid, RANGE.ranges, 9)
    Study(url, "s", more).work(train)
    assert len(Study(url, "s", more).trials()) == 9 and len(train.calls) == 10
    again = Train()
    Study(f"sqlite:///{(tmp_path / 'b.db').as_posix()}", "s", RANGE).work(again)
    assert again.calls[:3] == drawn[:3]


def test_the_same_draw_is_not_trained_twice(url):
    plan = Plan({"bias": (True,)}, {"n_layer": (1, 2)}, 9)
    train = Train()
    Study(url, "s", plan).work(train)
    assert sorted(values["n_layer"] for values in train.calls) == [1, 2]
    assert sorted(trial.score for trial in Study(url, "s", plan).trials()) == [1.5, 2.5]


# -- what it is made of ----------------------------------------------------------------------------


def test_a_study_of_an_older_version_resumes(url):
    """Its settings had the older names, and some that no longer exist."""
    Study(url, "s", GRID).remember(dict(n_head=2, if_trav=False, dpo_average=False))
    Study(url, "s", GRID).compare(dict(n_head=2, shuffle=True))
    with pytest.raises(UserError, match="shuffle: True then, False now"):
        Study(url, "s", GRID).compare(dict(n_head=2, shuffle=False))


def test_a_study_is_of_one_sweep(url):
    Study(url, "s", GRID).remember(dict(grid=GRID.grid, n_head=2, seed=1))
    Study(url, "s", GRID).remember(dict(grid=GRID.grid, n_head=2, seed=1))
    Study(url, "other", GRID).compare(dict(n_head=4))  # nothing yet to compare it with
    Study(url, "other", GRID).remember(dict(n_head=2))
    with pytest.raises(UserError) as caught:
        Study(url, "s", GRID).compare(dict(grid={"n_layer": [1]}, n_head=2, seed=3))
    first, *lines = str(caught.value).splitlines()
    assert "study s began with other settings" in first and "--study=NAME" in first
    assert lines[1:] == ["  seed: 1 then, 3 now"] and "{'n_layer': [1]} now" in lines[0]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nonsense", "nonsense: "),
        ("sqlite:///{tmp}/no/such/folder.db", "unable to open database file"),
        ("postgresql+psycopg2://me:secret@localhost/x", "me:***@localhost/x: the driver"),
    ],
)
def test_databases_that_are_not_there(tmp_path, monkeypatch, where, message):
    monkeypatch.setitem(sys.modules, "psycopg2", None)  # not installed
    monkeypatch.setattr("tools.study.time.sleep", lambda seconds: None)
    with pytest.raises(UserError) as caught:
        Study(where.format(tmp=tmp_path.as_posix()), "s", GRID)
    assert str(caught.value).startswith("--storage=") and message in str(caught.value)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_sign_of_life_that_does_not_get_through_is_no_end(url, tmp_path):
    storage = study_module._open(optuna, url, heartbeat=1)
    (tmp_path / "study.db").write_bytes(b"no database" * 1000)
    storage.record_heartbeat(1)  # and no error


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_database_that_goes_away(url, tmp_path):
    def train(values):
        (tmp_path / "study.db").write_bytes(b"no database" * 1000)
        return 1.0, {}

    with pytest.raises(UserError, match=r"--storage=sqlite:.*finished trials are kept"):
        Study(url, "s", GRID).work(train)


def test_optuna_that_is_not_installed(url, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="pip install optuna"):
        Study(url, "s", GRID)


# -- many processes --------------------------------------------------------------------------------

# A process of its own that works at a study, and notes each trial in a file when it begins.
WORKER = """
import os, sys, time
sys.path.insert(0, {root!r})
from tools.study import Plan, Study

def train(values):
    with open({notes!r}, "a") as file:
        file.write(str(values["x"]) + "\\n")
    time.sleep({seconds})
    return values["x"], {{}}

study = Study({url!r}, "s", Plan({{"x": tuple(range({n}))}}), heartbeat=1)
study.work(train)
"""


@pytest.fixture
def worker(url, tmp_path):
    """worker(n, seconds): a process that works at a study of n trials; .notes is the file."""
    started = []

    def start(n, seconds):
        facts = dict(root=str(ROOT), notes=str(start.notes), url=url, n=n, seconds=seconds)
        started.append(subprocess.Popen([sys.executable, "-c", WORKER.format(**facts)]))
        return started[-1]

    start.notes = tmp_path / "notes"
    yield start
    for process in started:
        process.kill()
        process.wait()


def noted(worker):
    return [int(line) for line in worker.notes.read_text().split()] if worker.notes.exists() else []


def test_processes_that_join_never_get_the_same_trial(worker, url):
    """They make the database at the same moment, too."""
    processes = [worker(16, 0) for _ in range(3)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]
    assert sorted(noted(worker)) == list(range(16))
    plan = Plan({"x": tuple(range(16))})
    assert {trial.state for trial in Study(url, "s", plan).trials()} == {"finished"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no kill -9")
def test_what_a_killed_process_had_is_taken_over(worker):
    first = worker(3, 600)
    deadline = time.monotonic() + 120
    while not noted(worker):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    second = worker(3, 0)  # takes what waits, then waits for the first until that counts as dead
    assert second.wait(timeout=120) == 0
    assert noted(worker) == [0, 1, 2, 0]
