"""quickstart.py and the recipes that it runs. No virtual environment is made here."""

import ast
import functools
import json
import re
import signal
import subprocess
import sys

import pytest
from tiny_run import run_here

import quickstart
from config.configurator import configure
from minigpt.data.hashing import is_val

QUICKSTART = quickstart.ROOT / "quickstart.py"


# -- arguments and Pythons -------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--setup"], ["--test"], ["--help"]])
def test_read_arguments_takes_each_mode(words):
    assert quickstart.read_arguments(words) == "".join(words)


def test_h_is_help():
    assert quickstart.read_arguments(["-h"]) == "--help"


@pytest.mark.parametrize(
    ("word", "hint"), [("--tset", "did you mean --test?"), ("data", "expected --setup")]
)
def test_an_unknown_argument_is_one_line_and_exit_code_2(run_script, word, hint):
    done = run_script("quickstart.py", word)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert word in done.stderr and hint in done.stderr


def test_two_modes_at_once_are_refused():
    with pytest.raises(quickstart.SetupError, match="--setup --test") as caught:
        quickstart.read_arguments(["--setup", "--test"])
    assert caught.value.code == 2


def test_help_is_the_docstring(run_script):
    done = run_script("quickstart.py", "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.strip() == quickstart.__doc__.strip()


@pytest.mark.parametrize("version", [(3, 9, 18), (2, 7, 18), (3, 15, 0)])
def test_a_python_without_wheels_gets_one_line(monkeypatch, version):
    monkeypatch.setattr(quickstart, "setup", pytest.fail)  # nothing is installed for it
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(quickstart.SetupError) as caught:
        quickstart.main(["--setup"])
    message = str(caught.value)
    assert ".".join(map(str, version)) in message and "3.10 to 3.14" in message
    assert "\n" not in message


def test_an_old_python_can_read_the_file():
    # 3.7 is the oldest syntax that ast can check; a SyntaxError would hide the line above.
    ast.parse(QUICKSTART.read_text(encoding="utf-8"), feature_version=(3, 7))


def test_only_the_standard_library_is_imported():
    names = set()
    for node in ast.walk(ast.parse(QUICKSTART.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module.partition(".")[0])
    assert "subprocess" in names and names <= sys.stdlib_module_names


# -- packages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "tool", "folder", "wanted"),
    [
        ("linux", None, False, True),
        ("linux", "/usr/bin/nvidia-smi", False, False),
        ("linux", None, True, False),
        ("darwin", None, False, False),
        ("win32", None, False, False),
    ],
)
def test_cpu_torch_is_for_linux_without_a_driver(system, tool, folder, wanted):
    def which(name):
        return tool if name == "nvidia-smi" else None

    def exists(path):
        return folder and path == "/proc/driver/nvidia"

    assert quickstart.wants_cpu_torch(system, which, exists) is wanted


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine in which nothing is run: `pip_calls` notes what pip is asked for, and the rest
    says whether .venv works, which index answers, what pip returns and what then imports."""

    class Machine:
        def __init__(self):
            self.pip_calls, self.venvs_made = (), 0
            self.venv_works, self.index_answers = True, True
            self.cpu_wanted, self.installed = True, False
            self.pip_codes = {}  # last word → exit code
            self.import_problems = []  # one after the other; then none

        def pip(self, *words, verbose=False):
            self.pip_calls += (words,)
            return self.pip_codes.get(words[-1], 0)

        def make_venv(self):
            self.venvs_made += 1
            for path in quickstart.VENV.iterdir():
                path.unlink()

        def import_problem(self):
            problem, *self.import_problems = [*self.import_problems, ""]
            return problem

    machine = Machine()
    root, venv = tmp_path / "project", tmp_path / "project" / ".venv"
    venv.mkdir(parents=True)
    (root / "requirements.txt").write_text("torch==1.2.3  # why\nnumpy==4.5\n", encoding="utf-8")
    (root / "requirements-dev.txt").write_text("-r requirements.txt\nruff==6\n", encoding="utf-8")
    for name, value in dict(
        ROOT=root,
        VENV=venv,
        PIP_LOG=venv / "pip.log",
        works=lambda python: machine.venv_works,
        make_venv=machine.make_venv,
        pip=machine.pip,
        answers=lambda url: machine.index_answers,
        wants_cpu_torch=lambda: machine.cpu_wanted,
        has_version=lambda pin: machine.installed,
        import_problem=machine.import_problem,
    ).items():
        monkeypatch.setattr(quickstart, name, value)
    return machine


RUNTIME, DEV = quickstart.RUNTIME, quickstart.DEV


def files_installed(machine):
    """The requirements files that pip was asked for, by name."""
    return [re.split(r"[/\\]", words[1])[-1] for words in machine.pip_calls if words[0] == "-r"]


def test_torch_comes_first_and_alone_from_the_cpu_index(machine):
    quickstart.setup([RUNTIME])
    torch, rest = machine.pip_calls
    assert torch[-1] == "torch==1.2.3" and "--no-deps" in torch
    assert torch[torch.index("--index-url") + 1] == quickstart.CPU_INDEX
    # The other packages come from wherever this machine's pip takes them.
    assert rest == ("-r", str(quickstart.ROOT / RUNTIME))


@pytest.mark.parametrize("change", ["index_answers", "cpu_wanted"])
def test_without_that_index_the_plain_pin_is_taken(machine, change):
    setattr(machine, change, False)
    quickstart.setup([RUNTIME])
    assert len(machine.pip_calls) == 1 and files_installed(machine) == [RUNTIME]


def test_torch_that_is_there_is_left_alone(machine):
    machine.installed = True
    quickstart.setup([RUNTIME])
    assert len(machine.pip_calls) == 1


def test_a_failing_cpu_index_leads_to_the_plain_pin(machine, capsys):
    machine.pip_codes = {"torch==1.2.3": 1}
    quickstart.setup([RUNTIME])
    assert files_installed(machine) == [RUNTIME]
    assert "default index" in capsys.readouterr().out


def test_pip_is_hidden_unless_verbose(machine, monkeypatch, capsys):
    """A line for each step; pip's own output only with --verbose, in whatever place."""
    shown = []
    monkeypatch.setattr(quickstart, "pip", lambda *words, verbose=False: shown.append(verbose) or 0)
    quickstart.main(["--setup"])
    lines = capsys.readouterr().out.splitlines()
    assert shown == [False, False]
    assert sum(line.startswith("Installing") for line in lines) == 2
    quickstart.stamp(RUNTIME).unlink()
    quickstart.main(["--verbose", "--setup"])
    assert shown[2:] == [True, True]


def test_a_hidden_command_prints_nothing(capfd):
    command = [sys.executable, "-c", "import sys; print(7); print(8, file=sys.stderr); sys.exit(3)"]
    assert quickstart.run(command, quickstart.environment(), hidden=True) == 3
    assert capfd.readouterr() == ("", "")
    assert quickstart.run(command, quickstart.environment()) == 3
    assert "7" in capfd.readouterr().out


def test_the_second_time_nothing_is_installed(machine):
    quickstart.setup([RUNTIME])
    machine.pip_calls = ()
    quickstart.setup([RUNTIME])
    assert machine.pip_calls == ()
    quickstart.setup([RUNTIME, DEV])
    assert files_installed(machine) == [DEV]


@pytest.mark.parametrize("name", [RUNTIME, DEV])
def test_a_changed_requirements_file_is_installed_again(machine, name):
    quickstart.setup([RUNTIME, DEV])
    machine.pip_calls = ()
    path = quickstart.ROOT / name
    path.write_text(path.read_text(encoding="utf-8") + "more==7\n", encoding="utf-8")
    quickstart.setup([RUNTIME, DEV])
    # What includes a changed file has changed too.
    assert files_installed(machine) == ([RUNTIME, DEV] if name == RUNTIME else [DEV])


def test_a_moved_project_installs_again(machine, monkeypatch):
    quickstart.setup([RUNTIME])
    moved = quickstart.ROOT / "elsewhere"
    quickstart.VENV.rename(moved)
    monkeypatch.setattr(quickstart, "VENV", moved)
    assert not quickstart.is_stamped(RUNTIME)


def test_a_failed_installation_promises_nothing(machine):
    quickstart.setup([RUNTIME])
    path = quickstart.ROOT / RUNTIME
    path.write_text("torch==9\n", encoding="utf-8")
    machine.pip_codes = {str(path): 1}
    with pytest.raises(quickstart.SetupError):
        quickstart.setup([RUNTIME])
    assert not quickstart.stamp(RUNTIME).exists()


def test_a_broken_venv_is_made_again(machine):
    quickstart.setup([RUNTIME])
    machine.pip_calls, machine.venv_works = (), False
    quickstart.setup([RUNTIME])
    assert machine.venvs_made == 1 and files_installed(machine) == [RUNTIME]


def test_half_installed_packages_lead_to_a_new_venv(machine):
    machine.import_problems = ["ImportError: no torch"]
    quickstart.setup([RUNTIME, DEV])
    assert machine.venvs_made == 1
    assert files_installed(machine) == [RUNTIME, DEV, RUNTIME, DEV]
    assert quickstart.is_stamped(RUNTIME) and quickstart.is_stamped(DEV)


def test_packages_that_never_start_are_reported(machine):
    machine.import_problems = ["OSError: DLL load failed"] * 2
    with pytest.raises(quickstart.SetupError, match="DLL load failed"):
        quickstart.setup([RUNTIME])
    assert not quickstart.is_stamped(RUNTIME)


def test_a_missing_ensurepip_names_the_package(monkeypatch):
    monkeypatch.setattr(quickstart.importlib.util, "find_spec", lambda name: None)
    version = "{}.{}".format(*sys.version_info)
    with pytest.raises(quickstart.SetupError, match=rf"sudo apt install python{version}-venv"):
        quickstart.make_venv()


def test_a_venv_that_is_not_there_does_not_work(tmp_path):
    assert not quickstart.works(tmp_path / "bin" / "python")
    assert quickstart.works(sys.executable)


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (
            "Retrying after connection broken by 'NewConnectionError(...)'\n"
            "ERROR: No matching distribution found for torch==2.13.0",
            "network",
        ),
        ("ERROR: Could not install packages due to an OSError: [Errno 28]", "disk"),
        ("ERROR: No matching distribution found for torch==2.13.0", "no torch==2.13.0"),
        ("SSLError(SSLCertVerificationError(1, 'CERTIFICATE_VERIFY_FAILED'))", "certificate"),
        ("something else", "pip.log"),
    ],
)
def test_why_pip_failed_is_one_line(log, expected):
    message = quickstart.why_pip_failed(log)
    assert expected in message and "\n" not in message


def test_an_index_that_does_not_answer():
    assert not quickstart.answers("http://127.0.0.1:9/torch/")  # the discard port: nobody listens


# -- running things --------------------------------------------------------------------------------


def test_children_speak_utf8_at_once_and_see_no_other_modules(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    test = "import os, sys; print(sys.flags.utf8_mode, os.environ['PYTHONUNBUFFERED'], sys.path)"
    done = quickstart.captured(sys.executable, "-c", test)
    assert done.stdout.startswith("1 1 ") and "/elsewhere" not in done.stdout


def test_a_command_is_shown_as_any_shell_reads_it():
    words = ["sample.py", "--out_dir=out/x", "--start=问 1？"]
    assert quickstart.typed(words) == 'python sample.py --out_dir=out/x --start="问 1？"'


def test_a_failing_step_ends_with_its_command_and_code(monkeypatch, capfd):
    monkeypatch.setattr(quickstart, "PYTHON", sys.executable)
    with pytest.raises(quickstart.SetupError) as caught:
        quickstart.step(["-c", "exit(7)"])
    assert caught.value.code == 7 and 'python -c "exit(7)"' in str(caught.value)
    assert capfd.readouterr().out.startswith("$ python -c ")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a system without signals")
def test_a_killed_step_has_a_shells_code():
    command = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    assert quickstart.run(command, quickstart.environment()) == 128 + signal.SIGKILL


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C goes to the whole console there")
def test_ctrl_c_leaves_the_child_time_to_save(tmp_path):
    child = (
        "import signal, time, pathlib\n"
        "saved = []\n"
        "signal.signal(signal.SIGINT, lambda *_: saved.append(1))\n"
        "print('ready', flush=True)\n"
        "while not saved: time.sleep(0.01)\n"
        "time.sleep(1)\n"  # longer than subprocess itself would wait
        f"pathlib.Path({str(tmp_path / 'saved')!r}).touch()\n"
    )
    parent = (
        "import sys, quickstart\n"
        "try: quickstart.run([sys.executable, '-c', sys.argv[1]], quickstart.environment())\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent, child],
        cwd=quickstart.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    quickstart.os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 130
    process.stdout.close()
    assert (tmp_path / "saved").exists()


# -- the pipeline ----------------------------------------------------------------------------------


@functools.cache
def help_of(script):
    """What a script's --help prints."""
    code, output, error = run_here(script, "--help")
    assert (code, error) == (0, "")
    return output


@pytest.mark.parametrize("script", sorted({words[0] for _, words in quickstart.STEPS}))
def test_each_script_has_the_settings_that_its_steps_use(script):
    for _, (name, *words) in quickstart.STEPS:
        for word in words if name == script else ():
            if word.startswith("--"):
                key = word.partition("=")[0]
                assert re.search(rf"{key}\b", help_of(script)), word
            else:
                assert (quickstart.ROOT / word).is_file(), word


def resolved(*recipes):
    """The settings of train.py with these recipes."""
    return configure(
        shared="all", argv=[f"{quickstart.ROOT}/{name}" for name in recipes], quiet=True
    )


def test_the_recipes_are_read_and_fit_each_other():
    base, tuned = resolved("config/quickstart.py"), resolved("config/quickstart_sft.py")
    assert base.out_dir == quickstart.BASE == tuned.init_from
    assert tuned.out_dir == quickstart.TUNED
    assert base.block_size == tuned.block_size
    assert base.max_minutes + tuned.max_minutes <= 4  # the rest of the six are for the other steps
    ignored = (quickstart.ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert {"out/", "data/*/", ".venv/"} <= set(ignored)
    for settings in (base, tuned):
        assert settings.dataset.startswith("data/processed") and settings.out_dir.startswith("out/")


def test_the_questions_asked_at_the_end_are_training_pairs():
    lines = (quickstart.ROOT / quickstart.PAIRS).read_text(encoding="utf-8").splitlines()
    ids = {pair["question"]: pair["id"] for pair in map(json.loads, lines)}
    for question in quickstart.QUESTIONS:
        # A tenth of the ids is held out; these would not be if half of all were.
        assert not is_val(ids[question], 0.5), question


def test_the_summary_gives_both_figures_and_the_reason():
    def part(count, mean, exact):
        return dict(count=count, rouge_l_chars=dict(mean=mean), exact_match=exact)

    figures = {
        "out_dir": "out/x",
        "all": part(1000, 0.91, 0.85),
        "held out": part(100, 0.27, 0.03),
        "seen in training": part(900, 0.98, 0.94),
    }
    text = quickstart.summary(figures, 301)
    assert re.search(r"seen in training +900 pairs +0\.980\n", text)
    assert re.search(r"held out +100 pairs +0\.270\n", text)
    assert re.search(r"all +1000 pairs +0\.910\n", text)
    assert "5 min 01 s" in text and "memorised" in text
    assert "94%" in text and re.search(r"\b3%", text)
    assert "not memorised" not in text
    figures["seen in training"] = part(900, 0.5, 0.1)
    text += quickstart.summary(figures, 9)
    assert "not memorised" in text and "--max_minutes" in text
    # The commands to try next are real ones.
    for script, recipe in re.findall(r"python (\S+\.py) (config/\S+)?", text):
        assert (quickstart.ROOT / script).is_file() and (quickstart.ROOT / recipe).exists()


# -- requirements ----------------------------------------------------------------------------------


def pins(name):
    """The lines of a requirements file without comments."""
    text = (quickstart.ROOT / name).read_text(encoding="utf-8")
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]


def test_requirements_are_pinned_once_for_every_python():
    for name in (RUNTIME, DEV):
        found = {}
        for line in pins(name):
            if not line.startswith("-r "):
                match = re.fullmatch(
                    r"([\w-]+(?:\[\w+\])?)==[\d.]+(?:post\d+)?"
                    r"(?:; python_version (>=|<) \"3\.11\")?",
                    line,
                )
                assert match, line
                found.setdefault(match.group(1), []).append(match.group(2))
        # These want Python 3.11: where it is not, their tests are skipped.
        wanted = {"trl": [[">="]], "pyarrow": [[">="]], "datasets": [[">="]]}
        for package, sides in found.items():
            assert sides in wanted.get(package, [[None], [">=", "<"]]), package
    assert quickstart.torch_pin() in pins(RUNTIME)
    assert "-r requirements.txt" in pins(DEV)


def test_what_is_installed_is_what_is_pinned():
    # Else this suite says nothing about the versions that users get.
    from importlib.metadata import version

    newer = sys.version_info >= (3, 11)
    for line in pins(RUNTIME):
        pin, _, marker = line.partition(";")
        if not marker or (">=" in marker) == newer:
            name, expected = pin.strip().split("==")
            assert version(name).partition("+")[0] == expected, name
