"""visualize.py and its picture: reading logs, curves, axes, fonts, files, error messages.

python -m pytest tests/plotting/test_visualize.py
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib.tables._g_l_y_f import Glyph
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import font_manager
from matplotlib.image import imread
from tiny_run import run_here

from minigpt.common.errors import UserError
from minigpt.plotting import fonts
from minigpt.plotting.axes import choose_scales
from minigpt.plotting.fonts import NAME_LENGTH, drawable
from minigpt.plotting.loss import loss_figure, smoothed
from minigpt.plotting.output import output_paths, write_figure
from minigpt.plotting.style import PALETTE
from minigpt.training.log import read_runlog, read_runlogs, run_names


def progress(step, loss, lr=1e-3):
    return dict(step=step, tokens=step * 100, minutes=step / 4, loss=loss, lr=lr, rate=2e4)


def evaluation(step, val_loss):
    return dict(step=step, tokens=step * 100, minutes=step / 4, val_loss=val_loss, best=True)


def write_log(folder, *records, tail=""):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records) + tail
    (folder / "log.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def pretrain(tmp_path):
    losses = {1: 8.0, 10: 6.0, 20: 5.0, 30: 4.5, 40: 4.25}
    lines = [progress(step, loss, lr=step * 1e-5) for step, loss in losses.items()]
    vals = [evaluation(0, 8.5), evaluation(20, 4.75), evaluation(40, 5.0)]
    return write_log(tmp_path / "out" / "pretrain", *sorted(lines + vals, key=lambda r: r["step"]))


@pytest.fixture
def sft(tmp_path):
    lines = [progress(1, 3.0, lr=1e-4), progress(4, 2.0, lr=5e-5)]
    return write_log(tmp_path / "out" / "sft", evaluation(0, 3.2), *lines, evaluation(4, 2.5))


def lines_of(figure):
    """gid → (x, y) of every line in the figure's panels."""
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    return {line.get_gid(): tuple(np.array(d) for d in line.get_data()) for line in lines}


def texts_of(figure):
    header = [text for legend in figure.legends for text in legend.get_texts()]
    return [text.get_text() for text in figure.texts + header + figure.axes[0].texts]


# -- reading ---------------------------------------------------------------------------------------


def test_columns(pretrain):
    log = read_runlog(pretrain)
    assert log.train["step"].tolist() == [1, 10, 20, 30, 40]
    assert log.train["loss"].tolist() == [8.0, 6.0, 5.0, 4.5, 4.25]
    assert log.val["val_loss"].tolist() == [8.5, 4.75, 5.0]
    assert log.val["tokens"].tolist() == [0, 2000, 4000]
    assert log.best == 1 and log.end() == 40 and log.end("minutes") == 10


@pytest.mark.parametrize("tail", ['{"step": 41, "tok', '{"step": 41', "{", "\x00\x00"])
def test_torn_last_line_is_left_out(pretrain, tail):
    whole = read_runlog(pretrain)
    with open(pretrain / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(tail)
    assert read_runlog(pretrain).train["step"].tolist() == whole.train["step"].tolist()


def test_half_a_character_at_the_end(pretrain):
    with open(pretrain / "log.jsonl", "ab") as file:
        file.write('{"note": "训'.encode()[:-1])
    assert read_runlog(pretrain).end() == 40


def test_steps_taken_again_count_once(tmp_path):
    first = [progress(10, 5.0), evaluation(10, 5.1), progress(20, 4.0), evaluation(20, 1.0)]
    again = [progress(20, 4.4), evaluation(20, 4.5), progress(30, 3.0)]
    log = read_runlog(write_log(tmp_path / "run", *first, *again))
    assert log.train["step"].tolist() == [10, 20, 30]
    assert log.train["loss"].tolist() == [5.0, 4.4, 3.0]
    assert log.val["val_loss"].tolist() == [5.1, 4.5]
    assert log.best == 1


def test_resumed_from_an_older_checkpoint(tmp_path):
    first = [progress(step, 5.0) for step in (10, 20, 30)] + [evaluation(30, 5.0)]
    again = [progress(15, 4.0)]
    log = read_runlog(write_log(tmp_path / "run", *first, *again))
    assert log.train["step"].tolist() == [10, 15] and log.best is None


def test_val_loss_that_is_not_finite_is_no_best(tmp_path):
    records = [evaluation(0, 8.0), evaluation(5, float("nan")), evaluation(9, float("-inf"))]
    log = read_runlog(write_log(tmp_path / "run", *records))
    assert log.best == 0 and np.isnan(log.val["val_loss"][1:]).all()
    figure, _ = loss_figure([log])
    assert np.isfinite(figure.axes[0].get_ylim()).all()


def test_the_best_is_what_best_holds(tmp_path):
    """A preference run that has forgotten too much has a lower loss, and is not kept for it."""
    forgot = evaluation(20, 3.0) | dict(best=False, forgetting=1.5)
    log = read_runlog(write_log(tmp_path / "run", evaluation(0, 5.0), evaluation(10, 4.0), forgot))
    assert log.best == 1 and log.val["val_loss"].tolist() == [5.0, 4.0, 3.0]


def test_missing_log_names_the_command_and_the_neighbours(pretrain):
    with pytest.raises(UserError) as error:
        read_runlog(pretrain.parent / "pretrian")
    message = str(error.value)
    assert "pretrian" in message and "python train.py" not in message  # it would train another
    assert str(pretrain) in message and "\n" not in message


def test_every_unreadable_run_is_named(pretrain, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "log.jsonl").write_text("")
    with pytest.raises(UserError) as error:
        read_runlogs([tmp_path / "none", pretrain, tmp_path / "empty"])
    first, second = str(error.value).splitlines()
    assert "none" in first and "missing" in first
    assert "empty" in second and "no steps yet" in second


@pytest.mark.parametrize(
    "line, output",
    [
        ("not json", "log.jsonl:2: not JSON: 'not json'"),
        ('{"step": 2, "loss": 1.0}', "log.jsonl:2: tokens is null, expected a number"),
        (json.dumps(progress(2, "high")), 'log.jsonl:2: loss is "high", expected a number'),
    ],
)
def test_bad_line_is_named(tmp_path, line, output):
    tail = f"{line}\n{json.dumps(progress(3, 1.0))}\n"
    folder = write_log(tmp_path / "run", progress(1, 2.0), tail=tail)
    with pytest.raises(UserError, match=r"log\.jsonl:2") as error:
        read_runlog(folder)
    assert output in str(error.value)


def test_lines_of_other_kinds_are_passed_over(tmp_path):
    folder = write_log(
        tmp_path / "run", progress(1, 2.0), {"event": "pause"}, [1], progress(2, 1.0)
    )
    assert read_runlog(folder).train["step"].tolist() == [1, 2]


def test_a_run_that_has_just_begun_over_logarithms(tmp_path):
    """Only the evaluation before the first step is logged."""
    folder = write_log(tmp_path / "run", evaluation(0, 9.0))
    figure, _ = loss_figure([read_runlog(folder)], log="both")
    assert figure.axes[0].get_xscale() == "symlog"


def test_names_that_the_middle_tells_apart_stay_different():
    long = "experiment-with-a-name-lr={}-batch=8-seed=1337-cosine"
    names, _, _ = drawable([long.format(lr) for lr in ("1e-3", "3e-4", "3e-5")] + ["short"])
    assert [name[-1] if i < 3 else name for i, name in enumerate(names)] == [*"…" * 3, "short"]
    assert [name[5:9] for name in names[:3]] == ["1e-3", "3e-4", "3e-5"]
    assert all(len(name) <= NAME_LENGTH for name in names)


def test_run_names_are_as_short_as_they_can_be():
    assert run_names(["out/pretrain", "out/sft/"]) == ["pretrain", "sft"]
    assert run_names(["a/x/run", "b/x/run", "c"]) == ["a/x/run", "b/x/run", "c"]


@given(st.sets(st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join), min_size=1))
def test_run_names_differ(folders):
    names = run_names(sorted(folders))
    assert len(set(names)) == len(folders)
    assert all(
        folder.endswith(name[-1]) for folder, name in zip(sorted(folders), names, strict=True)
    )


# -- the moving average ----------------------------------------------------------------------------


def test_smoothing_by_hand():
    # 8, (8/2 + 4) / (1/2 + 1), (8/4 + 4/2 + 0) / (1/4 + 1/2 + 1)
    assert smoothed(np.array([8.0, 4.0, 0.0]), 0.5) == pytest.approx([8, 16 / 3, 16 / 7])


@given(st.lists(st.floats(-100, 100), max_size=30), st.floats(0, 0.999))
def test_smoothing_is_the_weighted_mean(values, beta):
    expected = [
        np.average(values[: t + 1], weights=[beta ** (t - i) for i in range(t + 1)])
        for t in range(len(values))
    ]
    assert smoothed(np.array(values), beta) == pytest.approx(expected, rel=1e-6, abs=1e-6)


# -- what the picture holds ------------------------------------------------------------------------


def test_curves_of_two_runs(pretrain, sft):
    figure, notes = loss_figure(read_runlogs([pretrain, sft]), smooth=0.5)
    lines = lines_of(figure)
    kinds = ("raw", "train", "val", "best", "lr")
    assert notes == [] and set(lines) == {f"{kind}:{i}" for kind in kinds for i in (0, 1)}

    def holds(gid, xs, ys):
        assert lines[gid][0].tolist() == xs and lines[gid][1] == pytest.approx(ys)

    holds("raw:0", [1, 10, 20, 30, 40], [8.0, 6.0, 5.0, 4.5, 4.25])
    holds("train:0", [1, 10, 20, 30, 40], smoothed([8.0, 6.0, 5.0, 4.5, 4.25], 0.5))
    holds("val:0", [0, 20, 40], [8.5, 4.75, 5.0])
    holds("best:0", [20], [4.75])
    holds("lr:0", [1, 10, 20, 30, 40], [1e-5, 1e-4, 2e-4, 3e-4, 4e-4])
    holds("val:1", [0, 4], [3.2, 2.5])
    holds("train:1", [1, 4], [3.0, (3.0 / 2 + 2.0) / 1.5])
    holds("best:1", [4], [2.5])
    holds("lr:1", [1, 4], [1e-4, 5e-5])

    texts = texts_of(figure)
    assert "pretrain\n4.750 at step 20" in texts and "sft\n2.500 at step 4" in texts
    assert "4.750" in texts and "2.500" in texts  # beside the points


def test_panels_share_x_and_the_axes_say_what_they_show(pretrain):
    figure, _ = loss_figure([read_runlog(pretrain)])
    loss, lr = figure.axes
    assert loss.get_xlim() == lr.get_xlim() and loss.get_shared_x_axes().joined(loss, lr)
    assert lr.get_xlabel() == "step" and "loss" in loss.get_ylabel()
    assert "pretrain: train and val loss" in texts_of(figure)
    assert loss.get_position().height > 3 * lr.get_position().height


@pytest.mark.parametrize(
    "x, factor, place", [("tokens", 100, "2,000 tokens"), ("minutes", 0.25, "5.0 min")]
)
def test_other_x_axes(pretrain, x, factor, place):
    figure, _ = loss_figure([read_runlog(pretrain)], x=x)
    lines = lines_of(figure)
    assert lines["raw:0"][0].tolist() == [factor * step for step in (1, 10, 20, 30, 40)]
    assert lines["best:0"][0].tolist() == [20 * factor]
    assert f"best val, at {place}" in texts_of(figure)


def test_no_smoothing_draws_the_raw_curve_once(pretrain):
    lines = lines_of(loss_figure([read_runlog(pretrain)], smooth=0)[0])
    assert "raw:0" not in lines
    assert lines["train:0"][1].tolist() == [8.0, 6.0, 5.0, 4.5, 4.25]


def test_colours_tell_runs_apart_and_one_runs_curves_too(pretrain, sft):
    runs = read_runlogs([pretrain, sft])

    def colours(figure):
        return {line.get_gid(): line.get_color() for line in figure.axes[0].get_lines()}

    both, alone = colours(loss_figure(runs)[0]), colours(loss_figure(runs[:1])[0])
    assert both["train:0"] == both["val:0"] != both["train:1"] == both["val:1"]
    assert alone["train:0"] != alone["val:0"] == alone["best:0"]


def test_runs_of_different_lengths_and_losses_get_logarithms(tmp_path, pretrain, sft):
    long, short = read_runlogs([pretrain, sft])
    long.train["step"][-1] = 32  # exactly 8 times as long is still drawn to scale
    long.val["step"][-1] = 32
    assert choose_scales([long, short], "steps", "auto") == (False, False)
    long.val["step"][-1] = 33
    assert choose_scales([long, short], "steps", "auto") == (True, False)
    assert choose_scales([long, short], "steps", "none") == (False, False)
    assert choose_scales([long], "steps", "both") == (True, True)
    short.val["val_loss"][-1] = 0.01
    assert choose_scales([long, short], "steps", "auto") == (True, True)
    figure, _ = loss_figure([long, short])
    loss, lr = figure.axes
    assert loss.get_xscale() == "symlog" and loss.get_yscale() == "log"
    left, right = loss.get_xlim()
    assert left < 0 < 33 < right  # the evaluation at step 0 is in the picture
    assert loss.get_ylim()[0] < 0.01


def test_the_first_plunge_does_not_take_the_whole_height(tmp_path):
    steps = np.arange(1, 201)
    records = [progress(int(s), 3.0 + 0.5 * (1 - s / 200) + 6.0 * (s < 5)) for s in steps]
    figure, _ = loss_figure([read_runlog(write_log(tmp_path / "run", *records))])
    low, high = figure.axes[0].get_ylim()
    assert low < 3.0 and 3.5 < high < 4.5
    # A spike later than the start is news, and is shown.
    records[150]["loss"] = 8.0
    figure, _ = loss_figure([read_runlog(write_log(tmp_path / "run", *records))])
    assert figure.axes[0].get_ylim()[1] > 8.0


def test_labels_of_close_best_points_do_not_overlap(tmp_path):
    folders = [
        write_log(
            tmp_path / f"run{i}",
            *[progress(s, 4 - s / 100 + i / 100) for s in range(1, 100)],
            evaluation(100, 3 + i / 100),
        )
        for i in range(3)
    ]
    figure, _ = loss_figure(read_runlogs(folders))
    renderer = figure.canvas.get_renderer()
    labels = [text for text in figure.axes[0].texts if text.get_gid().startswith("label:")]
    boxes = [label.get_window_extent(renderer) for label in labels]
    assert [label.get_text() for label in labels] == ["3.000", "3.010", "3.020"]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_header_fits_the_picture(tmp_path):
    names = ["a_run_with_quite_a_long_name_indeed", "_under", "$x$_{2}", "d", "e", "f", "g"]
    folders = [write_log(tmp_path / n, progress(1, 4.0), evaluation(2, 3.0)) for n in names]
    for some in (folders[:1], folders[:4], folders):
        figure, _ = loss_figure(read_runlogs(some))
        figure.canvas.draw()
        frame = figure.axes[0].get_window_extent()
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert box.x1 <= frame.x1 + 1 and frame.y1 < box.y0 and box.y1 <= figure.bbox.y1
            assert not box.overlaps(figure.texts[0].get_window_extent())  # the title
    texts = texts_of(figure)
    written = [text for legend in figure.legends for text in legend.get_texts()]
    assert not any(text.get_parse_math() for text in [*written, *figure.texts])  # $ is no formula
    assert "_under\n3.000 at step 2" in texts and "$x$_{2}\n3.000 at step 2" in texts


def test_too_many_runs(pretrain):
    runs = [read_runlog(pretrain)] * 8
    with pytest.raises(UserError, match="8 runs: a picture of more than 7"):
        loss_figure(runs)


@pytest.mark.parametrize("records", [[evaluation(0, 8.0)], [progress(1, 8.0)]])
def test_a_run_that_has_just_begun(tmp_path, records):
    figure, _ = loss_figure([read_runlog(write_log(tmp_path / "run", *records))])
    write_figure(figure, [tmp_path / "a.png"])
    assert ("best:0" in lines_of(figure)) == ("val_loss" in records[0])


# -- Chinese names ---------------------------------------------------------------------------------


@pytest.fixture
def chinese_font(tmp_path):
    """A font file with the characters 预 训 练 and nothing else, their outlines empty."""
    characters = {ord(c): f"glyph{i}" for i, c in enumerate("预训练")}
    names = [".notdef", *characters.values()]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(characters)
    builder.setupGlyf({name: Glyph() for name in names})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Three Characters", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    path = tmp_path / "three.ttf"
    builder.save(path)
    return str(path)


@pytest.fixture
def only_own_fonts(monkeypatch):
    """Installed fonts: those that come with matplotlib, whatever this machine has."""
    data = str(Path(font_manager.findfont("DejaVu Sans")).parent)
    fonts = [font for font in font_manager.fontManager.ttflist if font.fname.startswith(data)]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *args, **kwargs: [])
    return fonts


def drawn_without_missing_glyphs(figure, path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of each glyph that it lacks
        write_figure(figure, [path])


def test_chinese_name_without_a_font_is_said(tmp_path, only_own_fonts):
    folder = write_log(tmp_path / "预训练", progress(1, 2.0), evaluation(2, 1.0))
    other = write_log(tmp_path / "sft", progress(1, 2.0))
    figure, (note,) = loss_figure(read_runlogs([other, folder]))
    assert "预训练 is called run 2" in note and "\n" not in note
    assert "run 2\n1.000 at step 2" in texts_of(figure)
    drawn_without_missing_glyphs(figure, tmp_path / "a.png")


@pytest.mark.parametrize("listed", [True, False])  # in matplotlib's list, or installed since
def test_chinese_name_takes_an_installed_font(
    tmp_path, only_own_fonts, chinese_font, monkeypatch, listed
):
    if listed:
        font_manager.fontManager.addfont(chinese_font)
    else:
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda *a, **k: [chinese_font])
    folder = write_log(tmp_path / "预训练", progress(1, 2.0), evaluation(2, 1.0))
    figure, notes = loss_figure([read_runlog(folder)])
    assert notes == []
    (title,) = [text for text in figure.texts if "预训练" in text.get_text()]
    assert title.get_fontfamily() == ["DejaVu Sans", "Three Characters"]
    drawn_without_missing_glyphs(figure, tmp_path / "a.png")


def test_a_font_that_lacks_one_character_is_not_taken(only_own_fonts, chinese_font):
    font_manager.fontManager.addfont(chinese_font)
    assert drawable(["预训练"])[1] == ["DejaVu Sans", "Three Characters"]
    names, families, notes = drawable(["预训练的"])
    assert names == ["run 1"] and families == ["DejaVu Sans"] and len(notes) == 1


def test_plain_names_ask_for_no_other_font(monkeypatch):
    monkeypatch.setattr(fonts, "find_font", None)
    assert drawable(["pretrain", "été"]) == (["pretrain", "été"], ["DejaVu Sans"], [])


# -- files -----------------------------------------------------------------------------------------


def test_png_and_svg_are_written_and_hold_a_picture(tmp_path, pretrain, sft):
    figure, _ = loss_figure(read_runlogs([pretrain, sft]))
    png, svg = tmp_path / "new" / "loss.png", tmp_path / "new" / "loss.SVG"
    write_figure(figure, output_paths(f"{png}, {svg}"), dpi=100)
    pixels = imread(png)[..., :3]  # (height, width, 3)
    assert pixels.shape[1] == 900 and (pixels[0, 0] == 1).all()
    for colour in PALETTE[:2]:
        wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted) < 0.01).all(axis=2).sum() > 100
    text = svg.read_text(encoding="utf-8")
    assert "<svg" in text and 'id="train:0"' in text and 'id="val:1"' in text
    assert sorted(path.name for path in png.parent.iterdir()) == ["loss.SVG", "loss.png"]


def test_the_same_log_makes_the_same_svg(tmp_path, pretrain):
    for name in ("a.svg", "b.svg"):
        write_figure(loss_figure([read_runlog(pretrain)])[0], [tmp_path / name])
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_an_interruption_leaves_the_old_picture(tmp_path, pretrain, monkeypatch):
    target = tmp_path / "loss.png"
    target.write_bytes(b"old")
    figure, _ = loss_figure([read_runlog(pretrain)])

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_figure(figure, [target])
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.glob("loss*")] == ["loss.png"]


def test_output_mistakes_are_reported_together(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError) as error:
        output_paths(f"loss.jpg,{tmp_path / 'folder.png'},plain")
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == [
        "loss.jpg",
        "plain",
        str(tmp_path / "folder.png"),
    ]
    assert "ends in .png or .svg" in str(error.value)
    with pytest.raises(UserError, match="names no file"):
        output_paths(" , ")


# -- the script ------------------------------------------------------------------------------------


def test_the_command(tmp_path, pretrain, sft, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--runs=out/pretrain,out/sft,out/sft/", "--output=loss.png,loss.svg", "--x=tokens"]
    code, out, err = run_here("visualize.py", *words)
    assert (code, err) == (0, "")
    assert (tmp_path / "loss.png").stat().st_size > 20_000 and (tmp_path / "loss.svg").exists()
    lines = out.splitlines()
    assert "pretrain: 40 steps, 4,000 tokens, best val loss 4.750 at 2,000 tokens" in lines
    assert len([line for line in lines if line.startswith("sft: ")]) == 1  # named twice, drawn once
    assert lines[-1] == "wrote loss.png, loss.svg"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runs=out/none"], "--runs takes run folders, which train.py makes"),
        (["--runs=,"], "--runs: no run given"),
        (["--smooth=1"], "--smooth=1: expected 0 (none) up to but not 1"),
        (["--output=loss.gif"], "loss.gif: expected a name that ends in .png or .svg"),
    ],
)
def test_mistakes_in_the_command(tmp_path, pretrain, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run_here("visualize.py", *words)
    assert code == 2 and message in err and "Traceback" not in err
    assert not list(tmp_path.glob("loss*"))
