"""Passwords and keys of the servers: from a flag, an environment variable or a file.

    key = read_secret(settings, "api_key", "MINIGPT_API_KEY")    # --api_key, --api_key_file

`ps` shows the flags of all processes to every user of a machine, but no variables or files.
"""

import os
from pathlib import Path

from minigpt.common.errors import UserError


def read_secret(settings, flag, variable):
    """The secret in the setting `flag` or the file `flag`_file, else in the environment `variable`,
    else None.

    UserError for both flags at once, a file that cannot be read, and a secret that is not one line.
    """
    given, path = getattr(settings, flag), getattr(settings, f"{flag}_file")
    if given and path:
        raise UserError(f"--{flag} and --{flag}_file: give one of them")
    if path:
        return _checked(_read(path, flag), f"--{flag}_file={path}")
    if given:
        return _checked(given, f"--{flag}")
    return _checked(os.environ.get(variable), f"the variable {variable}")


def _read(path, flag):
    try:
        secret = Path(path).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"--{flag}_file={path}: cannot be read") from None
    if not secret:
        raise UserError(f"--{flag}_file={path}: the file is empty")
    return secret


def _checked(secret, source):
    if secret and not secret.isprintable():
        raise UserError(f"{source}: expected one line of printable characters")
    return secret or None
