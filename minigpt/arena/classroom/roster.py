"""The roster of a class: a CSV file with the columns name and code. A pupil joins by the code.

    write_roster("class.csv", 30)                   # with new codes, to print
    roster = Roster("class.csv", voters, ledger)
    roster.join(browser, "ABCD-3467")               # this browser votes as that pupil from now on
    roster.voter(browser)                           # the pupil's voter id; None: not joined

A vote belongs to the pupil: two browsers with one code are one voter. The file is read again when
it changes. A code that is deleted or changed there is revoked: its browsers have to join again. A
pupil's voter id depends on the name alone, so a new code keeps the votes. The ledger stores neither
names nor codes: ids are keyed hashes (Voters.derived_id).
"""

import csv
import hmac
import io
import logging
import os
import secrets
import threading
import time
import unicodedata
from pathlib import Path
from typing import NamedTuple

from minigpt.common.errors import UserError
from minigpt.common.presets import read_text

# Without letters and digits that look alike, on paper or aloud: 0 O, 1 I L, 2 Z, 5 S, 8 B, U V.
ALPHABET = "34679ACDEFGHJKMNPQRTWXY"
CODE_CHARS = 8  # of a new code: 23^8, too many to guess at the rate that join() is limited to
LEAST_CODE_CHARS = 4  # of a code that the teacher chose
MAX_PUPILS = 1000
MAX_BROWSERS = 10  # of a pupil; the oldest have to join again

log = logging.getLogger("minigpt")


class Pupil(NamedTuple):
    """A line of the roster. code: ""  if it is revoked."""

    name: str
    code: str


def write_roster(path, n):
    """Write a roster of n pupils with new codes, for the teacher to fill in the names. The owner
    alone may read it. UserError if the file exists or cannot be written."""
    codes = set()
    while len(codes) < n:
        codes.add("".join(secrets.choice(ALPHABET) for _ in range(CODE_CHARS)))
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(Pupil._fields)
    for i, code in enumerate(codes, start=1):
        rows.writerow([f"pupil {i:02}", f"{code[:4]}-{code[4:]}"])
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UserError(f"{path}: exists already; give another name, or delete it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    with os.fdopen(handle, "w", encoding="utf-8-sig", newline="") as file:  # for spreadsheets
        file.write(text.getvalue())


def read_roster(path):
    """The Pupils of a roster, in order. Spaces around names, and lines without a name and a code
    are ignored. UserError with every problem of the file, by line."""
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    pupils, problems, seen = [], [], {}
    try:
        header = [(name or "").strip() for name in rows.fieldnames or ()]
        if not set(Pupil._fields) <= set(header):
            raise UserError(f"{path}: its first line is {','.join(header)}; expected name,code")
        rows.fieldnames = header
        for row in rows:
            pupil = Pupil(*((row[field] or "").strip() for field in Pupil._fields))
            if any(pupil):
                problems += _problems(pupil, f"{path}: line {rows.line_num}", seen)
                pupils.append(pupil)
    except csv.Error as error:
        raise UserError(f"{path}: line {rows.line_num}: no CSV ({error})") from None
    if not 1 <= len(pupils) <= MAX_PUPILS:
        problems.append(f"{path}: {len(pupils)} pupils; expected 1 to {MAX_PUPILS}")
    if problems:
        raise UserError("\n".join(problems))
    return pupils


def _problems(pupil, where, seen):
    """What is wrong with a line. seen: the names and codes before it → their lines; added to."""
    found = []
    code = normalized(pupil.code)
    if not pupil.name:
        found.append(f"{where}: no name; expected name,code")
    if pupil.code and len(code) < LEAST_CODE_CHARS:
        least = f"at least {LEAST_CODE_CHARS} letters or digits, or none (revoked)"
        found.append(f"{where}: code {pupil.code!r}: expected {least}")
    for kind, key in (("name", pupil.name), ("code", code)):
        if key and (kind, key) in seen:
            before = seen[kind, key].rpartition(": ")[2]
            found.append(f"{where}: the same {kind} as in {before}; every pupil needs another one")
        seen.setdefault((kind, key), where)
    return found


def normalized(code):
    """A code as it is compared: without spaces and hyphens, in upper case, and in half width, as a
    Chinese input method may write it."""
    text = unicodedata.normalize("NFKC", code).upper()
    return "".join(char for char in text if char.isalnum())


class Roster:
    """See the module's docstring. path: the file. voters: Voters. ledger: Ledger."""

    def __init__(self, path, voters, ledger):
        """UserError if the file cannot be read, or is no roster."""
        self.path, self._voters, self._ledger = Path(path), voters, ledger
        self.problem = None  # why the file, as it is now, cannot be used
        self._lock = threading.Lock()
        self._stamp = self._read_stamp()
        self._use(read_roster(path))

    @property
    def pupils(self):
        """The Pupils, in the order of the file."""
        self._refresh()
        return self._pupils

    def names(self):
        """voter id → name of every pupil, in the order of the file."""
        return {self._voter_of(pupil): pupil.name for pupil in self.pupils}

    def active_voters(self):
        """The voter ids of the pupils who have a code."""
        return [self._voter_of(pupil) for pupil in self.pupils if pupil.code]

    def join(self, browser, code):
        """Make a browser (the id in its cookie) vote as the pupil with this code. Returns the
        Pupil, or None if no pupil has the code. The caller limits how often this is tried."""
        self._refresh()
        given, found = normalized(code).encode(), None
        for seat, pupil in self._seats.items():  # all of them: the time says nothing about the code
            if hmac.compare_digest(normalized(pupil.code).encode(), given):
                found = seat
        if found is None:
            return None
        with self._ledger.transaction("IMMEDIATE"):
            row = (browser, found, time.time())
            self._ledger.execute("INSERT OR REPLACE INTO browser VALUES (?, ?, ?)", row)
            self._ledger.execute(
                "DELETE FROM browser WHERE seat = ? AND id NOT IN "
                "(SELECT id FROM browser WHERE seat = ? ORDER BY time DESC LIMIT ?)",
                (found, found, MAX_BROWSERS),
            )
        return self._seats[found]

    def leave(self, browser):
        """The browser is no pupil's any more."""
        with self._ledger.transaction("IMMEDIATE"):
            self._ledger.execute("DELETE FROM browser WHERE id = ?", (browser,))

    def pupil(self, browser):
        """The Pupil as whom a browser votes; None if it has not joined, or the code is revoked."""
        if browser is None:
            return None
        self._refresh()
        with self._ledger.transaction():
            query = "SELECT seat FROM browser WHERE id = ?"
            row = self._ledger.execute(query, (browser,)).fetchone()
        return self._seats.get(row["seat"]) if row else None

    def voter(self, browser):
        """The voter id of pupil()."""
        pupil = self.pupil(browser)
        return pupil and self._voter_of(pupil)

    def _voter_of(self, pupil):
        return self._voters.derived_id("pupil", pupil.name)

    def _use(self, pupils):
        self._pupils = pupils
        self._seats = {
            self._voters.derived_id("seat", pupil.name, normalized(pupil.code)): pupil
            for pupil in pupils
            if pupil.code
        }

    def _refresh(self):
        """Read the file again if it has changed. Where it cannot be used, the last roster stays."""
        with self._lock:
            stamp = self._read_stamp()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                self._use(read_roster(self.path))
                self.problem = None
            except UserError as error:
                self.problem = str(error)
                log.warning("the roster stays as it was: %s", error)

    def _read_stamp(self):
        try:
            state = os.stat(self.path)
        except OSError:
            return None
        return state.st_mtime_ns, state.st_size, state.st_ino
