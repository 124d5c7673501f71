"""UserError, run() for the main function of every script, and ROOT, the project's folder."""

import errno
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class UserError(Exception):
    """An error that the user can fix. The message says what, where and how; no traceback."""


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
