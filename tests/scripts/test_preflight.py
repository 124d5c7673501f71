"""How scripts start: --help and errors in the settings load no package, and a Python without the
packages gets a line that says how to activate the environment."""

import ast
import importlib.metadata
import json
import subprocess
import sys

import pytest
from conftest import ROOT

FOLDERS = ("", "data", "sft", "tools", "bench")
PATHS = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
PATHS = [*PATHS, ROOT / "findings" / "run.py"]
SCRIPTS = [
    str(path.relative_to(ROOT))
    for path in PATHS
    if path.name != "quickstart.py" and "run(main)" in path.read_text(encoding="utf-8")
]

# Runs scripts one after the other in one process, and prints what each has loaded.
LOADED = """
import contextlib, io, json, runpy, sys
sys.path.insert(0, ".")
before = set(sys.modules)
for script in sys.argv[2:]:
    out, error, sys.argv = io.StringIO(), io.StringIO(), [script, sys.argv[1]]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    loaded = {name.split(".")[0] for name in set(sys.modules) - before} & set(SITE)
    print(json.dumps([script, code, sorted(loaded), out.getvalue(), error.getvalue()]))
"""


def started(flag):
    """script → (exit code, packages loaded, stdout, stderr) of every script with this one flag."""
    site = sorted(importlib.metadata.packages_distributions())
    program = LOADED.replace("SITE", repr(site))
    done = subprocess.run(
        [sys.executable, "-c", program, flag, *SCRIPTS],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = map(json.loads, done.stdout.splitlines())
    return {script: (code, loaded, out, error) for script, code, loaded, out, error in rows}


def test_there_are_scripts():
    assert {"train.py", "server.py", "data/prepare.py", "bench/sft.py"} <= set(SCRIPTS)


def test_help_loads_no_package():
    for script, (code, loaded, out, error) in started("--help").items():
        assert (code, loaded, error) == (0, [], ""), script
        assert "usage: python " in out, script


def test_an_error_in_the_settings_loads_no_package():
    for script, (code, loaded, out, error) in started("--no_such_setting=1").items():
        assert (code, loaded, out) == (2, [], ""), script
        assert error.count("\n") == 1 and "no_such_setting" in error, script


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_starts_alike(script):
    """Docstring, light imports, settings, preflight, the other imports."""
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    calls = [
        node.lineno
        for node in tree.body
        if isinstance(node, ast.If) and "preflight(read_settings)" in ast.unparse(node)
    ]
    assert len(calls) == 1


@pytest.mark.parametrize(
    "script, flags, reason",
    [
        ("train.py", ["--n_head=3", "--n_embd=64"], "n_head=3"),
        ("train.py", ["--learning_rate=-1", "--dropout=1"], "dropout=1"),
        ("sample.py", ["--top_p=2"], "top_p=2"),
        ("server.py", ["--out_dir=x", "--temperature=-1"], "temperature=-1"),
        ("sample_gradio.py", ["--slots=0"], "slots=0"),
        ("tools/sweep.py", ["--trials=-1"], "trials=-1"),
        ("evaluations-RougeL.py", ["--batch_size=0"], "batch_size=0"),
        ("sft/sft_generate.py", ["--n_min=0"], "n_min=0"),
    ],
)
def test_an_impossible_value_is_found_without_the_packages(script, flags, reason):
    """-S: without site-packages, so whatever imports a package fails."""
    done = isolated(script, *flags)
    assert done.returncode == 2 and reason in done.stderr
    assert "activate" not in done.stderr and "Traceback" not in done.stderr


def isolated(script, *flags):
    return subprocess.run(
        [sys.executable, "-S", "-E", script, *flags],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


@pytest.mark.parametrize("script", ["train.py", "data/prepare.py", "sample_gradio.py"])
def test_without_the_packages_the_line_says_how_to_activate(script, tmp_path):
    flags = [f"--ledger={tmp_path}/x"] if script == "sample_gradio.py" else []
    done = isolated(script, *flags)
    assert done.returncode == 2 and done.stdout == ""
    assert "activate" in done.stderr and done.stderr.count("\n") == 1
    assert "torch" in done.stderr and sys.executable in done.stderr


def test_an_old_python_is_named():
    program = (
        "import sys, runpy; sys.version_info = (3, 9, 1); sys.argv = ['train.py']; "
        "sys.path.insert(0, '.'); runpy.run_path('train.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert done.returncode and "Python 3.9.1" in done.stderr and "Traceback" not in done.stderr
