"""MiniGPT in one command: the packages, then the whole pipeline on the bundled sample.

    python quickstart.py            # install, prepare, train, fine-tune, measure, answer
    python quickstart.py --setup    # only install
    python quickstart.py --test     # install, then lint and run the whole test suite
    python quickstart.py --help     # this text

    python quickstart.py --setup --verbose    # with each of them: also show pip's own output

It needs only Python 3.10 to 3.14 (64 bit). Packages go into .venv in this folder: a download of
about 250 MB and 1.2 GB on disk; on Linux with an NVIDIA GPU several GB. The pipeline then takes
three to six minutes on two CPU cores and prints every command before it runs it.
"""

# This file uses only syntax of Python 3.6, so that an old Python prints which version is needed
# instead of a SyntaxError.
import difflib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
OLDEST, NEWEST = (3, 10), (3, 14)  # the Pythons that torch's pinned version has wheels for
ON_WINDOWS = os.name == "nt"
PYTHON = VENV / ("Scripts/python.exe" if ON_WINDOWS else "bin/python")
ACTIVATE = r".venv\Scripts\activate" if ON_WINDOWS else "source .venv/bin/activate"

RUNTIME, DEV = "requirements.txt", "requirements-dev.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PIP_LOG = VENV / "pip.log"


class SetupError(Exception):
    """An error that the user can fix: the message says what and how. code: the exit code."""

    def __init__(self, message, code=1):
        super().__init__(message)
        self.code = code


def main(words):
    """Run quickstart with these arguments; return the exit code."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise SetupError(wrong_python(sys.version_info))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # Chinese on any Windows console
    verbose = "--verbose" in words
    mode = read_arguments([word for word in words if word != "--verbose"])
    if mode == "--help":
        print(__doc__.strip())
    elif mode == "--setup":
        setup([RUNTIME], verbose)
        say("Installed. To use it: " + ACTIVATE)
    elif mode == "--test":
        setup([RUNTIME, DEV], verbose)
        check()
    else:
        setup([RUNTIME], verbose)
        demonstrate()
    return 0


def wrong_python(version):
    """The message for a Python that is too old or too new."""
    found = ".".join(map(str, version[:3]))
    oldest, newest = (".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
    return (
        f"quickstart.py: this is Python {found}; MiniGPT needs {oldest} to {newest}: install one "
        f"from https://www.python.org/downloads and run it with that (as python{newest} or py "
        f"-{newest})"
    )


def read_arguments(words):
    """ "--setup", "--test", "--help", or "" for everything; SetupError for other arguments."""
    modes = ["--setup", "--test", "--help"]
    flags = [*modes, "--verbose"]
    words = ["--help" if word == "-h" else word for word in words]
    unknown = [word for word in words if word not in modes]
    if unknown:
        close = difflib.get_close_matches(unknown[0], flags, 1)
        hint = f"did you mean {close[0]}?" if close else "expected --setup, --test or --help"
        raise SetupError(f"quickstart.py: unknown argument {unknown[0]}; {hint}", code=2)
    if len(set(words)) > 1:
        raise SetupError(f"quickstart.py: {' '.join(words)}: expected one of them", code=2)
    return words[0] if words else ""


def say(text):
    """Print and flush, so that the output of child processes comes after it."""
    print(text, flush=True)


def duration(seconds):
    """Seconds as "4.2 s" or "2 min 05 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02} s"


# -- packages --------------------------------------------------------------------------------------


def setup(names, verbose=False):
    """Install the packages of these requirements files into .venv, unless they are there.
    verbose: show pip's output; else a line for each step."""
    fresh = not works(PYTHON)
    if fresh:
        make_venv()
    missing = [name for name in names if not is_stamped(name)]
    if not missing:
        return
    began = time.perf_counter()
    for name in missing:
        discard(stamp(name))  # not installed until it succeeds
    install(missing, verbose)
    problem = import_problem()
    if problem and not fresh:
        say(f"The packages in .venv do not work ({problem}): installing all of them again.")
        make_venv()
        install(names, verbose)
        problem = import_problem()
    if problem:
        remedy = "see .venv/pip.log"
        if ON_WINDOWS and "DLL" in problem:
            remedy = "install https://aka.ms/vs/17/release/vc_redist.x64.exe and run this again"
        raise SetupError(f"the packages were installed but do not start: {problem}; {remedy}")
    for name in names:
        stamp(name).write_text(fingerprint(name), encoding="utf-8")
    say(f"Packages are ready ({duration(time.perf_counter() - began)}).\n")


def works(python):
    """Whether the Python of a virtual environment starts, with pip and a supported version."""
    test = f"import sys, pip; sys.exit(not {OLDEST} <= sys.version_info[:2] <= {NEWEST})"
    try:
        return captured(python, "-c", test).returncode == 0
    except OSError:  # it is missing, or its base Python is gone
        return False


def make_venv():
    """Make .venv; replace an existing one."""
    if importlib.util.find_spec("ensurepip") is None:  # a package of its own on Debian and Ubuntu
        version = "{}.{}".format(*sys.version_info)
        raise SetupError(
            "this Python cannot make virtual environments: its module ensurepip is missing; "
            f"on Debian and Ubuntu: sudo apt install python{version}-venv, then run this again"
        )
    say("Making .venv again: it does not work." if VENV.exists() else "Making .venv …")
    done = captured(sys.executable, "-m", "venv", "--clear", VENV)
    if done.returncode:
        raise SetupError(
            f"{VENV} cannot be made: {last_line(done)}; delete the folder and try again"
        )


def fingerprint(name):
    """A hash of a requirements file, the files it includes, and the path of .venv, which cannot be
    moved."""
    text = (ROOT / name).read_text(encoding="utf-8")
    included = re.findall(r"^-r (\S+)", text, re.MULTILINE)
    parts = [str(VENV), text, *map(fingerprint, included)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def stamp(name):
    """The file with the fingerprint of the requirements file that is installed in .venv."""
    return VENV / f"{name}.sha256"


def discard(path):
    """Delete a file if it exists."""
    if path.exists():
        path.unlink()


def is_stamped(name):
    """Whether the current version of a requirements file is installed."""
    try:
        return stamp(name).read_text(encoding="utf-8") == fingerprint(name)
    except OSError:
        return False


def install(names, verbose=False):
    """pip install these requirements files; SetupError says why pip failed."""
    for name in names:
        if name == RUNTIME and wants_cpu_torch():
            install_cpu_torch(verbose)
        say(f"Installing {name} into .venv (some minutes; --verbose shows more) …")
        if pip("-r", str(ROOT / name), verbose=verbose):
            raise SetupError(why_pip_failed(read_log()))


def wants_cpu_torch(system=sys.platform, which=shutil.which, exists=os.path.exists):
    """Whether to install torch without CUDA: on Linux without an NVIDIA driver, where the default
    package includes gigabytes of CUDA. (On macOS and Windows it does not.)"""
    driver = which("nvidia-smi") or exists("/proc/driver/nvidia")
    return system.startswith("linux") and not driver


def install_cpu_torch(verbose=False):
    """Install torch from PyTorch's CPU index. If that fails, requirements.txt has the default."""
    pin = torch_pin()
    if has_version(pin):
        return
    if not answers(f"{CPU_INDEX}/torch/"):
        say("PyTorch's CPU index does not answer: taking torch from the default index.")
        return
    say(f"Installing {pin} for the CPU into .venv (about 200 MB) …")
    words = ["--no-deps", "--index-url", CPU_INDEX, "--timeout", "20", "--retries", "1", pin]
    if pip(*words, verbose=verbose):
        say("PyTorch's CPU index failed: taking torch from the default index.")


def torch_pin():
    """torch==VERSION from requirements.txt."""
    text = (ROOT / RUNTIME).read_text(encoding="utf-8")
    return re.search(r"^torch==[^\s;#]+", text, re.MULTILINE).group()


def has_version(pin):
    """Whether .venv has the package at the version of `pin` (name==version)."""
    name, version = pin.split("==")
    test = "import sys, importlib.metadata as m; print(m.version(sys.argv[1]).split('+')[0])"
    done = captured(PYTHON, "-c", test, name)
    return done.stdout.strip() == version


def answers(url):
    """Whether a server answers at `url` within seconds. pip would retry for minutes in a network
    that drops packets."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except (OSError, ValueError):  # URLError and timeouts are OSErrors
        return False


def pip(*words, verbose=False):
    """Run pip install in .venv; return its exit code. The user's pip settings apply, except --user,
    which a virtual environment does not allow. verbose: show pip's output; its log has it anyway.
    """
    settings = {
        "PIP_USER": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_USE_PEP517": "1",  # an older pip warns about packages without a wheel otherwise
    }
    discard(PIP_LOG)
    command = [str(PYTHON), "-m", "pip", "install", "--log", str(PIP_LOG), *words]
    return run(command, {**environment(), **settings}, hidden=not verbose)


def read_log():
    """The log of pip's last run."""
    try:
        return PIP_LOG.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def why_pip_failed(log):
    """One line for the user, from pip's log."""
    if re.search(r"No space left on device|Errno 28|not enough space", log):
        return "the disk is full: .venv needs about 1.2 GB (with CUDA about 8 GB)"
    if re.search(
        r"NewConnectionError|NameResolutionError|ConnectTimeout|ProxyError|ReadTimeout", log
    ):
        return (
            "pip cannot reach its package index: check the network or the proxy (or set a "
            "mirror: pip config set global.index-url URL), then run this again"
        )
    if re.search(r"SSLError|CERTIFICATE_VERIFY_FAILED", log):
        return "pip does not trust its package index's certificate: see pip config set global.cert"
    missing = re.search(r"No matching distribution found for (\S+)", log)
    if missing:
        return (
            f"pip found no {missing.group(1)} for this machine (Python "
            f"{platform.python_version()}, {platform.system()} {platform.machine()}); there is one "
            f"for 64-bit Linux and Windows and for Macs with Apple's own chips"
        )
    return "pip failed: the end of .venv/pip.log says why"


def import_problem():
    """ "" if the packages can be imported, else the last line of the error."""
    test = "import torch, numpy, tiktoken, tokenizers, safetensors.torch, matplotlib, jieba"
    done = captured(PYTHON, "-W", "ignore", "-c", test)
    return last_line(done) if done.returncode else ""


# -- running commands ------------------------------------------------------------------------------


def environment():
    """Environment variables of child processes: UTF-8, unbuffered, no other Python's modules."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "PYTHONPATH")}
    # On a busy machine torch's threads spin while they wait, and take the cores from the threads
    # that they wait for: ten times slower than threads that sleep.
    inherited.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return {**inherited, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}


def run(command, env, hidden=False):
    """Run a command in the project's folder, with its output on the screen unless `hidden`. Return
    its exit code (128 + the signal's number if a signal ended it, as in a shell).

    Ctrl-C also reaches the command: wait until it ends (train.py saves), then raise
    KeyboardInterrupt.
    """
    interrupted = False
    output = subprocess.DEVNULL if hidden else None
    process = subprocess.Popen(command, env=env, cwd=str(ROOT), stdout=output, stderr=output)
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            interrupted = True
        else:
            break
    if interrupted:
        raise KeyboardInterrupt
    return code if code >= 0 else 128 - code


def captured(*command):
    """Run a command without showing its output; return the CompletedProcess, with text."""
    return subprocess.run(
        [str(word) for word in command],
        env=environment(),
        cwd=str(ROOT),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )


def last_line(done):
    """The last line of a captured process, of stderr if there is any."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def typed(words):
    """A command as typed in any shell: arguments with special characters are quoted."""
    shown = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            key, value = "", word
        plain = re.fullmatch(r"[A-Za-z0-9_./,:-]*", value)
        shown.append(word if plain else f'{key}{equals}"{value}"')
    return " ".join(["python", *shown])


def step(words):
    """Print a command and run it with .venv's Python; SetupError if it fails."""
    say(f"$ {typed(words)}")
    code = run([str(PYTHON), *words], environment())
    if code:
        raise SetupError(f"this command failed with exit code {code}: {typed(words)}", code)


def check():
    """Run lint, format check and tests; stop at the first failure."""
    step(["-m", "ruff", "check", "."])
    step(["-m", "ruff", "format", "--check", "."])
    step(["-m", "pytest", "-q"])


# -- the pipeline ----------------------------------------------------------------------------------

BASE, TUNED = "out/quickstart", "out/quickstart_sft"
ENTRIES, PAIRS = "data/sample/wiki.jsonl", "sft/sft_saves.jsonl"
PICTURE = "out/quickstart.png"
QUESTIONS = ["长江被称为什么水道？", "章鱼有几颗心脏？", "植物的叶子为什么看上去是绿色的？"]

# (what a step does, its command without `python`)
STEPS = [
    (
        "Clean the bundled articles, hold some of them out, write the rest as blocks of tokens.",
        ["data/prepare.py", "config/quickstart.py", f"--input={ENTRIES}"],
    ),
    (
        "Pretrain: a small GPT learns from scratch to continue these texts.",
        ["train.py", "config/quickstart.py", "--overwrite=true"],
    ),
    (
        "Write question-answer pairs as blocks, with a mask: only the answers are trained on.",
        ["data/prepare_sft.py", "config/quickstart_sft.py", f"--input={PAIRS}"],
    ),
    (
        "Fine-tune: the same model learns to answer.",
        ["train.py", "config/quickstart_sft.py", "--overwrite=true"],
    ),
    (
        "Perplexity and bits per character on held-out answers.",
        ["evaluations-perplexity.py", f"--out_dir={TUNED}"],
    ),
    (
        "Rouge-L: how similar its answers are to the bundled ones.",
        ["evaluations-RougeL.py", f"--out_dir={TUNED}", f"--input={PAIRS}"],
    ),
    (
        "Draw the losses of both runs.",
        ["visualize.py", f"--runs={BASE},{TUNED}", f"--output={PICTURE}"],
    ),
    *(
        ("Ask it something.", ["sample.py", f"--out_dir={TUNED}", f"--start={question}"])
        for question in QUESTIONS
    ),
]


def demonstrate():
    """Run the pipeline on the bundled sample, then print the results and what to try next."""
    say("Every command is printed before its output. To run them yourself, first:")
    if Path.cwd() != ROOT:
        say(f"  cd {ROOT}")
    say(f"  {ACTIVATE}\n")
    began = last = time.perf_counter()
    for number, (purpose, words) in enumerate(STEPS, 1):
        say(f"[{number}/{len(STEPS)}] {purpose}")
        step(words)
        now = time.perf_counter()
        say(f"({duration(now - last)})\n")
        last = now
    figures = json.loads((ROOT / TUNED / "rouge.json").read_text(encoding="utf-8"))
    say(summary(figures, time.perf_counter() - began))


MEMORISED = """\
The model has memorised the sample: it answers {seen:.0%} of the questions that it was trained on
word for word. The held-out pairs are about articles without any pair in training: of these it
answers {held_out:.0%} word for word, and mostly writes sentences of the right form with wrong
facts. The held-out score is the one that shows what a model has learned. It grows with the amount
of training text, and this sample is a few dozen pages."""

CUT_SHORT = """\
The model has not memorised the sample: this machine was slow or busy, and training ended at the
recipes' max_minutes (it answers {seen:.0%} of the questions that it was trained on word for word,
and {held_out:.0%} of the held-out ones). With more time it will:
  python train.py config/quickstart.py --overwrite=true --max_minutes=10
  python train.py config/quickstart_sft.py --overwrite=true --max_minutes=10"""


def summary(figures, seconds):
    """The final text, from the figures of evaluations-RougeL.py and the total time."""
    lines = []
    for name in ("seen in training", "held out", "all"):
        count, mean = figures[name]["count"], figures[name]["rouge_l_chars"]["mean"]
        lines.append(f"  {name:<17} {count:>4} pairs   {mean:.3f}")
    scores = "\n".join(lines)
    seen, held_out = (figures[name] for name in ("seen in training", "held out"))
    memorised = seen["rouge_l_chars"]["mean"] >= 0.8
    meaning = (MEMORISED if memorised else CUT_SHORT).format(
        seen=seen["exact_match"], held_out=held_out["exact_match"]
    )
    return f"""\
Done in {duration(seconds)}. Rouge-L of its answers (over characters; 1 is word for word):

{scores}

{meaning}

Results
  {BASE + "/":<24} the pretrained run: checkpoint, log.jsonl, samples.txt, best/
  {TUNED + "/":<24} the fine-tuned run, with rouge.jsonl (every answer) and perplexity.json
  {PICTURE:<24} the loss curves

Next
  {ACTIVATE}
  python sample.py --out_dir={TUNED}                 # ask your own questions
  python server.py --out_dir={TUNED}                 # … or from any OpenAI client
  python sample_gradio.py                            # … or in a web page, side by side
  python data/prepare.py config/cpu_small.py --input=FOLDER   # your own .txt, .jsonl or .json
  python train.py config/cpu_small.py --max_minutes=20
  python sample.py --out_dir=out/cpu_small --start="中国的"

README.md (English) and README.zh.md (中文) have the rest."""


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SetupError as error:
        print(error, file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader has exited (`… | head`)
        sys.stderr.close()
        sys.exit(1)
