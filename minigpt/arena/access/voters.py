"""Voters: a random id in a signed cookie. Nothing else about a voter is stored.

    voters = Voters.beside("out/arena.sqlite")     # the key is in out/arena.sqlite.key
    cookie = voters.new_cookie()                   # for the browser
    voters.id_of(cookie)                           # the voter's id; None: we did not issue it

The signature (HMAC-SHA256) prevents a client from choosing an id, either another voter's or a new
one for each vote. Only the page issues ids, and it limits how many an address gets.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from minigpt.common.errors import UserError

KEY_BYTES = 32


class Voters:
    """See the module's docstring. key: KEY_BYTES random bytes."""

    def __init__(self, key):
        self._key = key

    @classmethod
    def beside(cls, ledger):
        """The Voters of a ledger. The key is in the file LEDGER.key, which is created at the first
        start and readable by its owner alone, so cookies stay valid after a restart. UserError if
        the file cannot be read or written."""
        path = Path(f"{ledger}.key")
        try:
            return cls(_read_or_create(path))
        except OSError as error:
            raise UserError(
                f"{path}: the key of the voters' cookies cannot be read or written "
                f"({error.strerror}); check the folder, or give another --ledger"
            ) from None

    def new_cookie(self):
        """A cookie with a new id, "ID.SIGNATURE"."""
        voter = secrets.token_urlsafe(16)
        return f"{voter}.{self._signature(voter)}"

    def id_of(self, cookie):
        """The id in a cookie; None if there is no cookie or its signature is wrong."""
        voter, _, signature = (cookie or "").partition(".")
        is_ours = hmac.compare_digest(signature.encode(), self._signature(voter).encode())
        return voter if voter and is_ours else None

    def derived_id(self, *texts):
        """An id that depends on these texts, and which nobody else can compute from them. It is not
        an id of new_cookie()."""
        joined = "\0".join(texts).encode()
        return "-" + hmac.new(self._key, b"\0" + joined, hashlib.sha256).hexdigest()[:32]

    def _signature(self, voter):
        return hmac.new(self._key, voter.encode(), hashlib.sha256).hexdigest()


def _read_or_create(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise UserError(
                f"{path}: {len(key)} bytes, expected {KEY_BYTES}: delete the file, and voters get "
                "new cookies"
            ) from None
        return key
    key = secrets.token_bytes(KEY_BYTES)
    with os.fdopen(handle, "wb") as file:
        file.write(key)
    return key
