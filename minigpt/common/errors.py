"""UserError; preflight() and run(), by which every script starts; ROOT, the project's folder."""

import errno
import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ACTIVATE = r".venv\Scripts\activate" if os.name == "nt" else "source .venv/bin/activate"
NEEDED = ("torch", "numpy", "tiktoken")  # packages that almost every script imports


def _outside_the_environment(reason):
    """The line for a Python without MiniGPT's packages."""
    version = ".".join(map(str, sys.version_info[:3]))
    place = "" if Path.cwd() == ROOT else f"cd {ROOT}; "
    remedy = f"{place}{ACTIVATE}"
    if not (ROOT / ".venv").exists():
        remedy = f"{place}python quickstart.py --setup, then {ACTIVATE}"
    return (
        f"{reason} (this is Python {version}, {sys.executable}): activate MiniGPT's environment: "
        f"{remedy}"
    )


if sys.version_info < (3, 10):  # noqa: UP036 (the line comes before a SyntaxError elsewhere)
    sys.exit(_outside_the_environment("MiniGPT needs Python 3.10 to 3.14"))


class UserError(Exception):
    """An error that the user can fix. The message says what, where and how; no traceback."""


def preflight(read_settings):
    """Call it before the imports that take seconds: --help and errors in the settings are answered
    at once, by read_settings(). Exits with 2 where packages are missing, as outside of .venv."""
    run(read_settings)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(_outside_the_environment(f"{', '.join(missing)} missing"), file=sys.stderr)
        sys.exit(2)


def run(main):
    """Run a script's main(). A UserError prints its message and exits with 2, Ctrl-C with 130."""
    # Chinese must print on a Windows console and into a pipe, whatever the locale is.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader has exited (`… | head`)
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"{error.filename or 'the disk'}: is full; make room and run again", file=sys.stderr)
        sys.exit(2)
