"""Repeat a finding: train its runs, measure, draw, and write its row of README.md.

    python findings/run.py                                  # list all findings with their verdicts
    python findings/run.py layouts in_order --input=TEXTS   # these two, on two cores
    python findings/run.py --all --input=TEXTS              # every one: a night
    python findings/run.py layouts --scale=gpu              # the same at the 124M shape

TEXTS is a folder with wiki/, qa/ and bbc/bbc_news.csv, or some of them; the bundled sample
replaces a missing wiki/ or qa/. Runs are stored in OUT_DIR/SCALE and shared between findings, also
between several of these commands at the same time. After an interruption the same command
continues: finished parts are not made again, and training is resumed. The figures of each scale are
stored in REPORT/results.json, the tables of REPORT/README.md are made from them, and a picture is
drawn to REPORT/NAME.png (at scale gpu NAME_gpu.png).
"""

import json
import os
import pathlib
import signal
import statistics
import sys
from typing import Literal

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import ROOT, UserError, preflight, run

FOLDER = pathlib.Path(__file__).resolve().parent
CHANGED = ", but the experiment has changed since"
SIZE = "only the size"
BEGIN, END = "<!-- written by findings/run.py -->", "<!-- end -->"
HEADER = ["", "the report", "claim as tested", "what was run", "what differs from the report"]
HEADER += ["figures", "verdict"]


class Settings:
    all: bool = False  # run every finding whose texts are there
    input: str = ""  # a folder with wiki/, qa/, bbc/bbc_news.csv; "": the bundled sample
    scale: Literal["cpu", "gpu", "test"] = "cpu"  # cpu: 4 layers of width 256, two cores; gpu: the
    #                             124M shape; test: takes seconds, the figures mean nothing
    seeds: int = 3  # runs per arm, with seeds from 1337 on
    out_dir: str = "out/findings"  # datasets, runs and scores
    report: str = ""  # folder of README.md, results.json and pictures; "": findings/, at scale
    #                             test OUT_DIR


def read_settings():
    """The settings, checked."""
    words = [word for word in sys.argv[1:] if word not in chosen_names()]
    return configure(Settings, doc=__doc__, argv=words, quiet=True)


def chosen_names():
    """The names of findings on the command line."""
    return [word for word in sys.argv[1:] if not word.startswith("-") and not word.endswith(".py")]


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from findings import fine_tuning, generation, pretraining, rewards
from findings.claims import MOST_SEEDS, judge, verdict
from findings.experiments import Lab, places
from findings.figure import finding_figure
from findings.runs import SCALES
from minigpt.common.report import duration, table, write_json
from minigpt.plotting.output import write_figure
from minigpt.training.log import read_runlog

FINDINGS = sorted(
    [*pretraining.FINDINGS, *fine_tuning.FINDINGS, *generation.FINDINGS, *rewards.FINDINGS],
    key=lambda finding: finding.number,
)


def main():
    settings = read_settings()
    chosen = choose(chosen_names(), settings)
    found = places(settings.input)
    report = settings.report or (settings.out_dir if settings.scale == "test" else FOLDER)
    report = pathlib.Path(report).resolve()
    folder = pathlib.Path(settings.out_dir).resolve() / settings.scale
    os.chdir(ROOT)  # paths of recipes and bundled texts are relative to it
    results = read_results(report)
    if not chosen:
        print_list(results, settings.scale, found)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # it also ends the running script
    lab = Lab(folder, SCALES[settings.scale], found, say=lambda line: print(line, flush=True))
    seeds = range(1337, 1337 + settings.seeds)
    ended, problems = [], []
    for finding in chosen:
        missing = finding.needs - set(found)
        if settings.all and missing:
            print(f"{finding.name}: left out, without texts for {', '.join(sorted(missing))}")
            continue
        print_claim(finding)
        try:
            result = experiment(finding, lab, seeds)
        except UserError as problem:  # go on with the next one
            problems.append(f"{finding.name}: {problem}")
            print(problems[-1], flush=True)
            continue
        with lab.locked(folder.parent / "report"):  # other processes write it, too
            results = read_results(report)
            results.setdefault(settings.scale, {})[finding.name] = result
            report.mkdir(parents=True, exist_ok=True)
            write_json(report / "results.json", results)
            write_readme(report / "README.md", results)
        draw(finding, lab, seeds, result, report)
        print(f"{finding.name}: {result['verdict']}\n", flush=True)
        ended.append(finding)
    for finding in ended:
        print_result(finding, results[settings.scale][finding.name])
    if problems:
        raise UserError("\n".join(problems))


def choose(names, settings):
    """The findings to run. UserError lists every mistake in the choice."""
    known = {finding.name: finding for finding in FINDINGS}
    problems = [
        f"{name}: no such finding; expected some of {', '.join(known)}"
        for name in names
        if name not in known
    ]
    if names and settings.all:
        problems.append("--all and names: expected one of them")
    if not 1 <= settings.seeds <= MOST_SEEDS:
        problems.append(f"--seeds={settings.seeds}: expected 1 to {MOST_SEEDS}")
    if problems:
        raise UserError("\n".join(problems))
    return FINDINGS if settings.all else [known[name] for name in dict.fromkeys(names)]


# -- one finding -----------------------------------------------------------------------------------


def experiment(finding, lab, seeds):
    """Run a finding; return its entry of results.json."""
    values = finding.measure(lab, seeds)
    judgements = [judge(check, values) for check in finding.checks]
    checks = [
        dict(says=str(check), **judgement._asdict())
        for check, judgement in zip(finding.checks, judgements, strict=True)
    ]
    return dict(
        claim=finding.claim,
        run=finding.run,
        # Not their paths: the file is for other machines, too.
        texts={
            kind: "bundled" if lab.places[kind] in BUNDLED else "given"
            for kind in sorted(finding.needs)
        },
        seeds=list(seeds),
        minutes=minutes(finding, lab, seeds),
        runs=runs_of(finding),
        values=values,
        checks=checks,
        verdict=verdict(judgements),
    )


def changed(finding, result):
    """Whether the experiment differs from the one that gave the stored result."""
    then = result["claim"], result["runs"], [check["says"] for check in result["checks"]]
    return then != (finding.claim, runs_of(finding), list(map(str, finding.checks)))


def runs_of(finding):
    """arm → the name of its run, which contains all its settings."""
    return {name: arm.made_of.name for name, arm in finding.arms.items()}


def logs(finding, lab, seeds):
    """arm → the logs of its run, one per seed. Of arms that share a run only the first; of a run
    that was continued only the last."""
    runs = {}
    made_of = [arm.made_of for arm in finding.arms.values()]
    left_out = {made.start.name for made in made_of if hasattr(made, "start")}
    for name, arm in finding.arms.items():
        made = getattr(arm.made_of, "run", arm.made_of)
        if made.name not in left_out:
            runs[name] = made
            left_out.add(made.name)
    return {
        name: [read_runlog(made.make(lab, seed)) for seed in seeds] for name, made in runs.items()
    }


def minutes(finding, lab, seeds):
    """Minutes of training of the arms' runs, without their bases."""
    return sum(
        log.end("minutes") for of_arm in logs(finding, lab, seeds).values() for log in of_arm
    )


def draw(finding, lab, seeds, result, folder):
    """Draw the finding's picture."""
    curves = None
    if finding.curve:
        curves = {
            name: [(log.val["step"], log.val["val_loss"]) for log in of_arm]
            for name, of_arm in logs(finding, lab, seeds).items()
        }
    title = f"Finding {finding.number}, {finding.name}: {result['verdict']}"
    figure, notes = finding_figure(title, result["values"], curves)
    path = folder / picture_name(finding, lab.scale.name)
    write_figure(figure, [path])
    print(*notes, f"picture: {path}", sep="\n")


def picture_name(finding, scale):
    return f"{finding.name}_gpu.png" if scale == "gpu" else f"{finding.name}.png"


# -- reports ---------------------------------------------------------------------------------------


def read_results(folder):
    """results.json: scale → finding → its figures."""
    path = folder / "results.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        raise UserError(f"{path}: is not JSON; fix it, or delete it and run again") from None


def print_list(results, scale, found):
    """Print all findings with their verdicts at this scale."""
    rows = []
    for finding in FINDINGS:
        result, missing = results.get(scale, {}).get(finding.name), finding.needs - set(found)
        state = result["verdict"] if result else "not run yet"
        if result and changed(finding, result):
            state += CHANGED
        if missing and not result:
            state += f"; needs --input with {', '.join(sorted(missing))}"
        rows.append([str(finding.number), finding.name, state])
    print(table(["", f"finding (scale {scale})", "state"], rows))
    print("python findings/run.py NAME …, or --all")


def print_claim(finding):
    """Print what the report says, the claim as tested, and how the test differs."""
    print(f"{finding.number}. {finding.name}")
    print(f"   the report   {finding.source}")
    print(f"   tested       {finding.claim}")
    print(f"   what differs {finding.differs or SIZE}", flush=True)


def print_result(finding, result):
    """Print the measurements and the verdict."""
    arms = list(finding.arms)
    rows = [
        [arm, *(spread(of_arm.get(arm)) for of_arm in result["values"].values())] for arm in arms
    ]
    print(table([f"{finding.number}. {finding.name}", *result["values"]], rows))
    for check in result["checks"]:
        half = "" if check["half"] is None else f" ± {check['half']:.3g}"
        print(f"{check['says']}: {check['verdict']} (difference {check['difference']:.3g}{half})")
    print(f"{finding.name}: {result['verdict']}\n")


def spread(values):
    """The mean over the seeds and their standard deviation."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.3g}"
    digits = 4 if abs(statistics.mean(values)) >= 1 else 3
    return f"{statistics.mean(values):.{digits}g} ± {statistics.stdev(values):.2g}"


def row(finding, result, scale):
    """The cells of a finding's row in README.md."""
    name = f"{finding.number} `{finding.name}`"
    differs = finding.differs or SIZE
    if not result or changed(finding, result):  # old figures do not belong to a new claim
        state = "not rerun since the experiment changed" if result else "not run yet"
        return [name, finding.source, finding.claim, finding.run, differs, "–", state]
    figures = [
        f"{measure}: {' · '.join(f'{arm} → {spread(of_arm[arm])}' for arm in of_arm)}"
        for measure, of_arm in result["values"].items()
    ]
    seeds = len(result["seeds"])
    texts = ", ".join(
        f"{kind}{' (bundled)' if whose == 'bundled' else ''}"
        for kind, whose in result["texts"].items()
    )
    ran = f"{result['run']} {seeds} seed{'s' if seeds > 1 else ''}; {texts}{'; ' if texts else ''}"
    ran += f"{duration(60 * result['minutes'])} of training"
    figures = f"{'<br>'.join(figures)} ([picture]({picture_name(finding, scale)}))"
    found = f"**{result['verdict']}**"
    return [name, finding.source, result["claim"], ran, differs, figures, found]


BUNDLED = set(places().values())


def write_readme(path, results):
    """Rewrite the tables of README.md, between the two marks, from all results."""
    parts = []
    for scale in ("cpu", "gpu", "test"):
        of_scale = results.get(scale, {})
        if scale != "cpu" and not of_scale:
            continue
        rows = [row(finding, of_scale.get(finding.name), scale) for finding in FINDINGS]
        lines = [HEADER, ["---"] * len(HEADER), *rows]
        parts.append(f"### --scale={scale}\n")
        parts += [f"| {' | '.join(cells)} |" for cells in lines] + [""]
    text = path.read_text(encoding="utf-8") if path.exists() else f"# Findings\n\n{BEGIN}\n{END}\n"
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{path}: expected one line {BEGIN} and after it one {END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    text = f"{before}{BEGIN}\n\n" + "\n".join(parts) + f"\n{END}{after}"
    path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    run(main)
