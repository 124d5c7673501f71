"""The journal: the file of pairs that sft/sft_generate.py writes, and the two files beside it.

    log = PairsLog("sft/my_pairs.jsonl", {"model": "qwen3", "template": "facts"}, on_pair=…)
    if entry not in log:                            # entry_hash() of its title and text
        log.add(Finished(entry, id, "done", pairs, {"completion_tokens": 210}))
    log.sync()                                      # every second or so
    log.close()

FILE.jsonl           a pair a line: question, answer, id and hash of its entry, its number among the
                     entry's pairs ("1/4"), generation, model. data/prepare_sft.py reads it as it is
FILE.progress.jsonl  a line for each generation (its settings) and for each finished entry
FILE.rejects.jsonl   the entries with too few pairs: the last raw answer, reasons, what passed

An entry that a server refused is not finished: the next run asks about it again. Its lines are
written at the end of a run that ends in order, so they are the last ones of their files, and the
next run cuts them off.

All lines of an entry are one write, its progress line follows, and every write appends. So whatever
ends the run (kill -9, a full disk, a power cut) leaves complete entries and at most one partial
entry at the end, which the next run cuts off and asks again.

A generation is the set of settings that change the pairs: prompt, model, lengths. An entry is
finished for one generation; another prompt or model asks it again and keeps the old pairs.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.common.files import sync_folder
from minigpt.common.json_text import parse_json
from minigpt.common.locks import lock_if_possible

OUTCOMES = ("done", "rejected", "refused")  # refused: the server refused the question
REFUSED = "refused"
SYNC_SECONDS = 1.0  # how much work a power cut may cost
_HASH = re.compile("[0-9a-f]{32}")
_PLACE = re.compile(r"([1-9]\d{0,5})/([1-9]\d{0,5})")


@dataclass(frozen=True)
class Finished:
    """An entry that is not asked again, or, if it was refused, not by this run.

    pairs: (question, answer) each; of an entry that is not done they go to the rejects. about:
    further fields of its progress line. raw, reasons: the last answer, and what was wrong with it.
    """

    entry: str
    id: str
    outcome: str
    pairs: list
    about: dict = field(default_factory=dict)
    raw: str = ""
    reasons: list = field(default_factory=list)


def entry_hash(*parts):
    """32 hex digits that identify an entry by its text."""
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=16).hexdigest()


def generation_hash(facts):
    """12 hex digits that identify a generation by its settings (JSON values)."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def beside(path):
    """(progress, rejects): the paths of the two files beside FILE.jsonl; of a symbolic link, beside
    its target."""
    path = _followed(path)
    return tuple(path.with_name(f"{path.stem}.{name}.jsonl") for name in ("progress", "rejects"))


def _followed(path):
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


class PairsLog:
    """See the module's docstring. One thread uses it.

    generation: the hash of `facts`.  pairs: how many are in the file, of all generations.
    refused: the hashes of the entries that servers refused in the last run.  earlier: entries that
    only other generations finished.  lost: entries that are finished by their progress line, but
    whose pairs are gone: they are asked again.  repaired: what was cut off or rewritten, a line
    each, for the user.
    """

    def __init__(self, path, facts, on_pair=None, on_finished=None):
        """Open or make the files.

        on_pair(record): called for each pair in the file, of every generation.
        on_finished(record): called for each progress line of this generation.
        UserError, with the files unchanged: where another run writes them, where they are not ours,
        or where a line in the middle was changed.
        """
        if Path(path).suffix != ".jsonl":
            raise UserError(f"--output={path}: expected a name that ends in .jsonl")
        # Through a symbolic link, the files beside it and their lock are those of the target.
        self.path = _followed(path)
        self.generation = generation_hash(facts)
        self._model = facts.get("model")
        self._pairs = _Journal(self.path, ("question",))
        progress, rejects = beside(path)
        self._progress = _Journal(progress, ("generation", "entry"))
        self._rejects = _Journal(rejects, ("entry",))
        self._finished, self.repaired, self._synced = set(), [], time.monotonic()
        self.refused, self._held = set(), []  # of the last run, and of this one
        is_new = not progress.exists()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._progress.lock()
            if self.path.exists():
                self._pairs.lock()  # it may have a second name (a hard link)
            self._open(facts, on_pair or _ignore, on_finished or _ignore)
        except OSError as error:
            self.close()
            raise UserError(f"{path}: cannot be opened ({error.strerror or error})") from None
        except BaseException:
            self.close()
            if is_new:  # it held only the lock
                with contextlib.suppress(OSError):
                    progress.unlink()
            raise

    def __contains__(self, entry):
        return bytes.fromhex(entry) in self._finished

    def __len__(self):
        return len(self._finished)

    def notices(self):
        """What the user should know before the run continues, a list of lines."""
        lines = list(self.repaired)
        if self.lost:
            lines.append(f"{self.lost:,} finished entries have lost their pairs: asked again")
        if self.earlier:
            lines.append(
                f"generation {self.generation} is a new one: with another prompt, model or setting "
                f"{self.earlier:,} entries were finished before. They are asked again; the old "
                "pairs stay"
            )
        if self.refused:
            lines.append(f"{len(self.refused):,} entries that were refused are asked again")
        if len(self):
            lines.append(f"going on: {len(self):,} entries finished, {self.pairs:,} pairs written")
        return lines

    # -- reading -----------------------------------------------------------------------------------

    def _open(self, facts, on_pair, on_finished):
        others = set()  # finished by other generations
        known, with_pairs, kept = False, set(), 0
        for number, end, record in self._progress.lines(is_ours=True):
            if "entry" not in record:
                known |= record["generation"] == self.generation
                kept = end
                continue
            if not _is_finished(record):
                raise self._progress.foreign(number, "no line of progress")
            if record["outcome"] == REFUSED:
                if record["generation"] == self.generation:
                    self.refused.add(record["entry"])
                continue
            kept = end
            key = bytes.fromhex(record["entry"])
            if record["generation"] != self.generation:
                others.add(key)
                continue
            on_finished(record)
            (with_pairs if record["pairs"] else self._finished).add(key)
        self._progress.cut(kept, in_order=True)
        found, older = self._read_pairs(on_pair, is_ours=self._progress.good > 0)
        reject = self._last_reject()
        # Everything has been read and is ours: from here on the files may be changed.
        for journal in (self._progress, self._pairs, self._rejects):
            self.repaired += journal.repair()
        if not known:
            self._write(self._progress, [{"generation": self.generation, **facts}])
        for key, n in found.items():
            if key not in with_pairs:
                self.repaired.append(f"entry {key.hex()}: its pairs are whole, so it is finished")
                on_finished(self._write_progress(key.hex(), "done", n, {}))
        if reject and reject[0] not in self._finished:
            on_finished(self._write_progress(reject[0].hex(), reject[1], 0, {}))
            self._finished.add(reject[0])
        self.lost = len(with_pairs - found.keys())
        self._finished |= found.keys()
        self.refused -= {key.hex() for key in self._finished}
        self.earlier = len((others | older) - self._finished)

    def _read_pairs(self, on_pair, is_ours):
        """({entry: number of its pairs} of this generation, entries of others)."""
        found, older = {}, set()
        self.pairs, group, whole = 0, [], 0
        for number, end, record in self._pairs.lines(is_ours):
            place = _place(record)
            if place is None:
                raise self._pairs.foreign(number, "not a pair that this script wrote")
            entry, is_mine = bytes.fromhex(record["entry"]), record["generation"] == self.generation
            key = (entry, record["generation"], place[1])
            begun = len(group) + 1 == place[0] and all(key == other for other, _ in group)
            if not begun or (is_mine and entry in found):
                raise self._pairs.foreign(number, f"pair {record['n']} of its entry is out of turn")
            group.append((key, record))
            if place[0] == place[1]:
                for _, pair in group:
                    on_pair(pair)
                self.pairs += len(group)
                group, whole = [], end
                if is_mine:
                    found[entry] = place[1]
                else:
                    older.add(entry)
        self._pairs.cut(whole)
        return found, older

    def _last_reject(self):
        """(entry, outcome) of the last rejected entry, where it is of this generation."""
        last, kept = None, 0
        for number, end, record in self._rejects.lines(is_ours=True):
            if not _is_finished({**record, "pairs": 0}):
                raise self._rejects.foreign(number, "not an entry that this script rejected")
            if record["outcome"] != REFUSED:
                last, kept = record, end
        self._rejects.cut(kept, in_order=True)
        if last is None or last["generation"] != self.generation:
            return None
        return bytes.fromhex(last["entry"]), last["outcome"]

    # -- writing -----------------------------------------------------------------------------------

    def add(self, finished):
        """Write a Finished entry; returns its progress line. It survives kill -9. Of a refused
        entry nothing is written before close().

        UserError where the disk fails; the entry is then not finished.
        """
        n = len(finished.pairs)
        if finished.outcome == REFUSED:
            self._held.append(finished)
            self._finished.add(bytes.fromhex(finished.entry))
            return self._progress_line(finished.entry, REFUSED, 0, finished.about)
        if finished.outcome == "done":
            self._write(
                self._pairs,
                [
                    {
                        **dict(question=question, answer=answer, id=finished.id),
                        **dict(entry=finished.entry, n=f"{i}/{n}"),
                        **dict(generation=self.generation, model=self._model),
                    }
                    for i, (question, answer) in enumerate(finished.pairs, start=1)
                ],
            )
        else:
            self._write(self._rejects, [self._reject_line(finished)])
            n = 0
        record = self._write_progress(finished.entry, finished.outcome, n, finished.about)
        self._finished.add(bytes.fromhex(finished.entry))
        self.pairs += n
        self.sync()
        return record

    def _reject_line(self, finished):
        passed = [dict(question=q, answer=a) for q, a in finished.pairs]
        about = dict(reasons=finished.reasons, raw=finished.raw, passed=passed)
        common = dict(entry=finished.entry, generation=self.generation, id=finished.id)
        return dict(common, outcome=finished.outcome, **about)

    def _progress_line(self, entry, outcome, n, about):
        return dict(entry=entry, generation=self.generation, outcome=outcome, pairs=n, **about)

    def _write_progress(self, *line):
        record = self._progress_line(*line)
        self._write(self._progress, [record])
        return record

    def _write(self, journal, records):
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        # Half a surrogate pair, which a server may send, becomes its JSON escape.
        journal.append(lines.encode("utf-8", "backslashreplace"))

    def sync(self, at_once=False):
        """fsync what was written, at most once in SYNC_SECONDS: a disk takes about a hundred fsyncs
        a second, and a fast server finishes more entries."""
        if at_once or time.monotonic() - self._synced >= SYNC_SECONDS:
            for journal in (self._pairs, self._rejects, self._progress):
                journal.sync()
            self._synced = time.monotonic()

    def close(self, keep_refused=True):
        """Write everything to the disk and close the files. keep_refused: False where the run ends
        by a fault that may have caused the refusals; then nothing is said of these entries."""
        held, self._held = self._held if keep_refused else [], []
        self._write(self._rejects, [self._reject_line(one) for one in held])
        lines = [self._progress_line(one.entry, REFUSED, 0, one.about) for one in held]
        self._write(self._progress, lines)
        for journal in (self._pairs, self._rejects, self._progress):
            journal.close()


def _ignore(record):
    pass


def _is_finished(record):
    return (
        _is_hash(record.get("entry"))
        and isinstance(record.get("generation"), str)
        and record.get("outcome") in OUTCOMES
        and type(record.get("pairs")) is int
    )


def _is_hash(value):
    return isinstance(value, str) and bool(_HASH.fullmatch(value))


def _place(record):
    """(2, 4) of a record that is pair 2 of 4 of its entry; None of any other."""
    texts = all(isinstance(record.get(name), str) for name in ("question", "answer", "generation"))
    match = _PLACE.fullmatch(str(record.get("n")))
    if not texts or not match or not _is_hash(record.get("entry")):
        return None
    number, of = map(int, match.groups())
    return (number, of) if number <= of else None


# -- a file of lines -------------------------------------------------------------------------------


class _Journal:
    """A file of JSON objects, a line each, that only grows. Made when the first line is written.

    keys: what its objects begin with.  good: whole lines that lines() has found.
    """

    def __init__(self, path, keys):
        self.path, self.good = path, 0
        self._heads = [f'{{"{key}": '.encode() for key in keys]
        self._file, self._size = None, None  # of what is whole
        self._torn = True  # whether what follows it is a torn write
        self._unended = self._dirty = False

    def lock(self):
        """UserError where another process has locked it; the lock ends with the process."""
        if lock_if_possible(self._open().fileno(), self.path) is False:
            raise UserError(
                f"{self.path}: another run is writing it; wait for its end, or give another "
                "--output"
            )

    def lines(self, is_ours):
        """Yield (number, where it ends, object) for each whole line.

        is_ours: the file is known to be ours; where it is not, a torn line alone does not show it.
        UserError for a line that is no object; what a torn write leaves at the end is skipped.
        """
        self.good, at = 0, 0
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open(self.path, "rb"))
            except FileNotFoundError:
                return
            for number, line in enumerate(file, start=1):
                try:
                    record = parse_json(line)
                except ValueError:
                    record = None
                ended = line.endswith(b"\n")
                if not ended and record is None and self._is_torn(line, is_ours):
                    break
                if not isinstance(record, dict) or not line.startswith(tuple(self._heads)):
                    raise self.foreign(number, "not a line that this script wrote")
                at += len(line)
                self._unended = not ended
                self.good += 1
                yield number, at, record
        self._size = at

    def _is_torn(self, line, is_ours):
        """Is it the beginning of a line of ours? After a power cut it may end in zero bytes."""
        line = line.rstrip(b"\0")
        begins = any(line.startswith(head) or head.startswith(line) for head in self._heads)
        return begins and (is_ours or self.good > 0)

    def foreign(self, number, what):
        """A UserError for a line that is not as it was written."""
        return UserError(
            f"{self.path}, line {number}: {what}; the file is continued only as it was written. "
            "Put the line back as it was, or give another --output (this one may be its --exclude)"
        )

    def cut(self, size, in_order=False):
        """Keep only the first `size` bytes of what lines() found. in_order: what is cut off was
        written to be cut off."""
        if self._size is not None and size < self._size:
            self._torn = not in_order or self._size < self.path.stat().st_size
            self._size, self._unended = size, False

    def repair(self):
        """Cut off everything after the last complete line; returns notices, a list."""
        if self._size is None:
            return []
        cut = self.path.stat().st_size - self._size
        if cut:
            self._open().truncate(self._size)
        if self._unended:  # an editor took the last line's end
            self._unended = False
            self.append(b"\n")
        if not cut or not self._torn:
            return []
        return [f"{self.path}: {cut:,} bytes of an unfinished entry cut off"]

    def append(self, data):
        """Write `data` at the end: as a rule in one piece. UserError where the disk fails; the file
        is then what it was."""
        if not data:
            return
        try:
            self._open()
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            if self._file:
                with contextlib.suppress(OSError):
                    self._file.truncate(self._size)
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); what it holds is whole. Make "
                "room, and give the same command again"
            ) from None
        self._size += len(data)
        self._dirty = True

    def sync(self):
        if self._dirty:
            os.fsync(self._file.fileno())
            self._dirty = False

    def close(self):
        if self._file:
            with contextlib.suppress(OSError):  # the disk may be full
                self.sync()
            self._file.close()
            self._file = None

    def _open(self):
        if self._file is None:
            is_new = not self.path.exists()
            self._file = open(self.path, "ab", buffering=0)
            if is_new:
                sync_folder(self.path.parent)  # without its name in there it would be lost
            if self._size is None:
                self._size = self._file.seek(0, os.SEEK_END)
        return self._file
