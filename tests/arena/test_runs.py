"""The Runs tab: folders as train.py writes them, whole, half written and broken."""

import json
import re

import gradio as gr
import numpy as np
import pytest
from test_chat_tab import Request

from minigpt.arena.access.rate_limit import VisitorLimits
from minigpt.arena.access.voters import Voters
from minigpt.arena.arena import Arena
from minigpt.arena.endpoints import Endpoints
from minigpt.arena.i18n import ENGLISH
from minigpt.arena.ui.context import PageContext
from minigpt.arena.ui.runs import RunsTab
from minigpt.arena.window.curves import MAX_POINTS, Curve, curves_svg, ticks
from minigpt.arena.window.runs import RunFolders, differences, read_view, thinned
from minigpt.arena.window.runs_html import runs_report


def train_line(step, loss):
    return dict(step=step, tokens=step * 64, minutes=step / 60, loss=loss, lr=1e-3, rate=100.0)


def val_line(step, loss):
    return dict(step=step, tokens=step * 64, minutes=step / 60, val_loss=loss, best=True)


def write_run(folder, settings=None, lines=None, torn="", samples=((0, "黄河"), (250, "黄河是"))):
    """A run's folder. torn: what follows the last whole line of its log."""
    folder.mkdir(parents=True)
    lines = lines or [
        train_line(1, 9.0),
        val_line(1, 8.5),
        train_line(250, 5.0),
        val_line(250, 4.5),
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + torn
    (folder / "log.jsonl").write_text(text, encoding="utf-8")
    if settings is not None:
        meta = dict(tokenizer="zh", prompt_format="plain", settings=settings)
        (folder / "config.json").write_text(json.dumps(meta), encoding="utf-8")
    text = "".join(f"step {step}: {sample}\n\n" for step, sample in samples)
    (folder / "samples.txt").write_text(text, encoding="utf-8")
    return folder


def test_runs_are_found_the_newest_first(tmp_path):
    import os

    for age, name in enumerate(("b", "a", "sweep/c")):
        folder = write_run(tmp_path / "out" / name)
        os.utime(folder / "log.jsonl", (1000 - age, 1000 - age))
    (tmp_path / "out" / "empty").mkdir()
    other = write_run(tmp_path / "other" / "a")
    os.utime(other / "log.jsonl", (1, 1))
    found = RunFolders(tmp_path / "out", [str(other)]).by_name()
    assert list(found) == ["b", "out/a", "c", "other/a"]
    assert RunFolders(tmp_path / "nowhere").by_name() == {}


def test_a_view_of_a_run_that_trains(tmp_path):
    folder = write_run(tmp_path / "run", dict(lr=1e-3), torn='{"step": 300, "lo')
    (folder / "samples.txt").open("ab").write("step 300: 黄".encode()[:-1])
    figures = dict(settings=dict(batch_size=3), text=dict(bits_per_char=1.25, name="x"), ok=True)
    (folder / "perplexity.json").write_text(json.dumps(figures))
    view = read_view("run", folder)
    assert view.problems == [] and view.log.train["step"].tolist() == [1, 250]
    assert view.samples == [(0, "黄河"), (250, "黄河是"), (300, "")]
    assert view.settings == dict(lr=1e-3, tokenizer="zh", prompt_format="plain")
    assert view.scores == {("perplexity", "text.bits_per_char"): 1.25}
    with (folder / "log.jsonl").open("a") as log:  # it continues
        log.write('ss": 1}\n' + json.dumps(train_line(400, 3.0)) + "\n")
    assert read_view("run", folder).problems  # the torn line was no line of train.py


def test_what_cannot_be_read_is_named(tmp_path):
    folder = write_run(tmp_path / "run", torn="no JSON\n{}\n")
    (folder / "config.json").write_text('{"settings": ')
    (folder / "perplexity.json").write_text("[" * 10_000)
    view = read_view("run", folder)
    assert view.log is None and len(view.problems) == 3
    report = runs_report(ENGLISH, [view], "step")
    for name in ("log.jsonl:5", "config.json", "perplexity.json"):
        assert name in report
    assert "黄河是" in report  # what can be read is shown


def test_only_differing_settings_are_compared(tmp_path):
    one = read_view("one", write_run(tmp_path / "one", dict(lr=1e-3, seed=1, out_dir="a")))
    two = read_view(
        "two", write_run(tmp_path / "two", dict(lr=3e-4, seed=1, out_dir="b", more=[1]))
    )
    new = read_view("new", write_run(tmp_path / "new"))  # no checkpoint yet
    assert differences([one, two, new]) == [
        ("lr", ["0.001", "0.0003", None]),
        ("more", [None, "[1]", None]),
    ]
    assert differences([one, new]) == []


def test_samples_of_a_long_run_are_thinned_evenly():
    assert thinned(list(range(1001)), 11) == list(range(0, 1001, 100))
    assert thinned([1, 2], 11) == [1, 2]


# -- the picture -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 250, [0, 50, 100, 150, 200, 250]), (2.3, 9.1, [2, 4, 6, 8, 10]), (3.0, 3.0, None)],
)
def test_ticks_are_round_and_cover_the_range(low, high, expected):
    found = ticks(low, high)
    assert expected is None or found == expected
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 7


def test_a_curve_is_where_its_numbers_are():
    points = np.array([(0, 2.0), (100, np.nan), (100, 4.0)])
    svg = curves_svg([Curve(0, points, np.empty((0, 2)))], "steps")
    (path,) = re.findall(r'class="train" stroke="#2563eb" points="([^"]*)"', svg)
    first, last = ([float(v) for v in pair.split(",")] for pair in path.split())
    assert first == [40, 256] and last == [510, 10]  # the corners of the frame
    assert curves_svg([Curve(0, np.empty((0, 2)), np.empty((0, 2)))], "steps") == ""


def test_a_long_curve_keeps_its_means():
    values = np.stack([np.arange(90_000.0), np.tile([1.0, 3.0], 45_000)], axis=1)
    svg = curves_svg([Curve(0, values, np.empty((0, 2)))], "steps")
    path = re.findall(r'points="([^"]+)"', svg)[0].split()
    assert len(path) == MAX_POINTS and len({pair.split(",")[1] for pair in path}) == 1


def test_hostile_runs_are_escaped(tmp_path):
    bad = "<script>alert(1)</script>"
    for name in ("a", "b"):
        folder = write_run(tmp_path / name, {bad: bad + name}, samples=[(0, bad)])
        (folder / "x.json").write_text(json.dumps({bad: 1, "y": 10**400}))
    views = [read_view(bad, tmp_path / name) for name in ("a", "b")]
    report = runs_report(ENGLISH, views, "minutes")
    assert "<script" not in report and report.count("&lt;script") >= 10


# -- the tab ---------------------------------------------------------------------------------------


def test_the_tab_follows_a_run(tmp_path):
    folder = write_run(tmp_path / "out" / "run", dict(lr=1))
    context = PageContext(
        Arena(Endpoints([]), None),
        [],
        Voters(b"k"),
        VisitorLimits(100),
        run_folders=RunFolders(tmp_path / "out"),
    )
    with gr.Blocks():
        tab = RunsTab(context)
    values = {tab.chosen: [], tab.x: "step"}
    opened = tab.open(values, Request())
    assert opened[tab.chosen]["value"] == ["run"] and "<svg" in opened[tab.report]
    values |= {tab.chosen: ["run", "gone", "../out"]}
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(val_line(500, 3.25)) + "\n")
    assert "3.2500 @ 500" in tab.update(values, Request())[tab.report]
