"""Mistakes that a user can mend, how a script ends with them, and where the project is."""

import errno
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class UserError(Exception):
    """A mistake that its maker can mend: the message says what, where, and how. No traceback."""


def run(main):
    """Run a script's main(): a UserError becomes its message and exit 2, Ctrl-C exit 130."""
    # Chinese must print on a Windows console and into a pipe, whatever the locale says.
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
    except BrokenPipeError:  # the reader went away (`… | head`): nothing is left to say
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"{error.filename or 'the disk'}: is full; make room and run again", file=sys.stderr)
        sys.exit(2)
