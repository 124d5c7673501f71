"""The file of pairs: nothing lost, nothing twice, wherever its writer dies; others' files stay."""

import itertools
import json
import subprocess
import sys
from collections import Counter

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.evaluation import examples
from minigpt.synthesis.journal import (
    Finished,
    PairsLog,
    beside,
    entry_hash,
    generation_hash,
)

FACTS = {"template": "facts 0123", "model": "qwen"}


def finished(name, n=2, outcome="done"):
    """An entry with n pairs, all its texts made of its name."""
    pairs = [(f"{name}的第{i}个问题？", f"“{name}”\u2028\n{i}。") for i in range(n)]
    about = dict(completion_tokens=n)
    rest = {} if outcome == "done" else dict(raw=f"{name} \ud83d", reasons=["太短"])
    return Finished(entry_hash(name), f"id {name}", outcome, pairs, about, **rest)


ENTRIES = [
    finished("甲", 3),
    finished("乙", 0),
    finished("丙", 1, "rejected"),
    finished("丁", 1),
    finished("戊", 2),
    finished("己", 0, "refused"),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "pairs.jsonl"


def write(path, entries, facts=FACTS):
    log = PairsLog(path, facts)
    for entry in entries:
        if entry.entry not in log:
            log.add(entry)
    log.close()
    return log


def questions(path):
    """Every question in the file, with the number of its occurrences."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return Counter(json.loads(line)["question"] for line in text.split("\n") if line)


def wanted(entries):
    return Counter(q for entry in entries if entry.outcome == "done" for q, _ in entry.pairs)


def lines(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def contents(path):
    return {file: file.read_bytes() for file in (path, *beside(path)) if file.exists()}


# -- what is written -------------------------------------------------------------------------------


def test_a_line_for_each_pair(path):
    write(path, ENTRIES)
    first, second, third, *_ = lines(path)
    assert first == {
        **dict(question="甲的第0个问题？", answer="“甲”\u2028\n0。", id="id 甲", n="1/3"),
        **dict(entry=entry_hash("甲"), generation=generation_hash(FACTS), model="qwen"),
    }
    assert (second["n"], third["n"]) == ("2/3", "3/3")
    assert questions(path) == wanted(ENTRIES)


def test_what_prepare_sft_reads_of_it(path):
    write(path, ENTRIES)
    found = [(pair.id, pair.question, pair.answer) for pair in examples.read_pairs(path)]
    assert found == [(e.id, *pair) for e in ENTRIES if e.outcome == "done" for pair in e.pairs]


def test_progress_and_rejects_stand_beside_it(path):
    write(path, ENTRIES)
    progress, rejects = beside(path)
    assert progress.name == "pairs.progress.jsonl" and rejects.name == "pairs.rejects.jsonl"
    generation, *rest = lines(progress)
    assert generation == {"generation": generation_hash(FACTS), **FACTS}
    assert [(line["entry"], line["outcome"], line["pairs"]) for line in rest] == [
        (e.entry, e.outcome, len(e.pairs) * (e.outcome == "done")) for e in ENTRIES
    ]
    assert [line["completion_tokens"] for line in rest] == [3, 0, 1, 1, 2, 0]
    assert lines(rejects)[0] == {
        **dict(entry=entry_hash("丙"), generation=generation_hash(FACTS), id="id 丙"),
        **dict(outcome="rejected", reasons=["太短"], raw="丙 \ud83d"),  # half a character too
        "passed": [dict(question="丙的第0个问题？", answer="“丙”\u2028\n0。")],
    }


def test_hashes_tell_apart():
    assert entry_hash("a", "b") != entry_hash("ab") != entry_hash("a\0b", "")
    assert entry_hash("\ud83d") and len(entry_hash("甲")) == 32
    assert generation_hash({"a": 1, "b": 2}) == generation_hash({"b": 2, "a": 1})
    assert generation_hash({"a": 1}) != generation_hash({"a": 2})


# -- resuming --------------------------------------------------------------------------------------


def test_what_is_finished_is_known_again(path):
    write(path, ENTRIES)
    before, seen, records = contents(path), [], []
    log = PairsLog(path, FACTS, seen.append, records.append)
    *known, refused = ENTRIES
    assert all(entry.entry in log for entry in known) and len(log) == len(known)
    assert refused.entry not in log and log.refused == {refused.entry}
    assert entry_hash("庚") not in log and log.pairs == 6 and log.repaired == []
    assert [record["question"] for record in seen] == list(wanted(ENTRIES))
    assert [record["outcome"] for record in records] == [entry.outcome for entry in known]
    assert log.add(refused)["outcome"] == "refused" and refused.entry in log
    assert contents(path) != before  # until it is closed nothing is said of it
    log.close()
    assert contents(path) == before


def test_refusals_are_the_last_lines_and_asked_again(path):
    one, two, three = (finished(name, 0, "refused") for name in "子丑寅")
    write(path, [one, *ENTRIES[:3], two])
    outcomes = [line.get("outcome") for line in lines(beside(path)[0])]
    assert outcomes == [None, "done", "done", "rejected", "refused", "refused"]
    log = PairsLog(path, FACTS)
    assert log.refused == {one.entry, two.entry} and log.repaired == []
    assert any("2 entries that were refused are asked again" in text for text in log.notices())
    log.add(finished("子"))
    log.add(three)
    log.close(keep_refused=False)
    rest = [line["entry"] for line in lines(beside(path)[0]) if line.get("outcome") == "refused"]
    assert rest == [] and len(lines(beside(path)[1])) == 1
    log = PairsLog(path, FACTS)
    assert one.entry in log and two.entry not in log and three.entry not in log
    log.close()


def test_another_generation_asks_again_and_leaves_the_old_pairs(path):
    write(path, ENTRIES)
    seen, records = [], []
    log = PairsLog(path, {**FACTS, "model": "other"}, seen.append, records.append)
    assert log.earlier == len(ENTRIES) - 1 and len(log) == 0  # one was refused
    assert len(seen) == log.pairs == 6 and records == []
    log.add(ENTRIES[0])
    assert ENTRIES[0].entry in log and log.pairs == 9
    log.close()
    assert PairsLog(path, {**FACTS, "model": "other"}).earlier == len(ENTRIES) - 2
    assert questions(path) == wanted([*ENTRIES, ENTRIES[0]])


def test_the_first_generation_resumes(path):
    write(path, ENTRIES[:2])
    write(path, ENTRIES[:1], {"model": "other"})
    assert write(path, ENTRIES).earlier == 0
    assert questions(path) == wanted([*ENTRIES, ENTRIES[0]])
    progress = lines(beside(path)[0])
    assert sum("entry" not in line for line in progress) == 2  # one line per generation


def steps(path, entries):
    """The files' bytes after each write, in the order in which they are written."""
    log, progress = PairsLog(path, FACTS), beside(path)[0]
    found = [contents(path)]
    for entry in entries:
        log.add(entry)
        after = contents(path)
        found += [{**after, progress: found[-1][progress]}, after]  # progress is written last
    log.close()
    return found


def test_killed_after_any_byte(tmp_path):
    """Every state that kill -9 can leave: a beginning of what is written, byte after byte."""
    made = steps(tmp_path / "pairs.jsonl", ENTRIES)
    states = 0
    for before, after in itertools.pairwise([{}, *made]):
        grown = [file for file in after if after[file] != before.get(file, b"")]
        for file in grown:
            old, new = before.get(file, b""), after[file]
            for size in {*range(len(old), len(new), 23), len(new) - 1, len(new)}:
                folder = tmp_path / f"state{states}"
                folder.mkdir()
                states += 1
                for other, data in {**before, file: new[:size]}.items():
                    (folder / other.name).write_bytes(data)
                reported = {
                    line["entry"]
                    for line in map(_loaded, before.get(beside(file)[0], b"").split(b"\n"))
                    if line and "entry" in line
                }
                copy = folder / "pairs.jsonl"
                log = PairsLog(copy, FACTS)
                assert all(entry in log for entry in reported)
                log.close()
                write(copy, ENTRIES)
                assert questions(copy) == wanted(ENTRIES)
                ends = [line["entry"] for line in lines(beside(copy)[0]) if "entry" in line]
                assert sorted(ends) == sorted(entry.entry for entry in ENTRIES)
                rejects = [line["entry"] for line in lines(beside(copy)[1])]
                assert rejects == [e.entry for e in ENTRIES if e.outcome != "done"]
    assert states > 100


def _loaded(line):
    try:
        return json.loads(line)
    except ValueError:
        return None


@settings(max_examples=60)
@given(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), st.booleans())
def test_cut_off_anywhere_by_a_power_cut(tmp_path_factory, shares, zeros):
    """Each file may lose another part of its end; some file systems leave zero bytes there."""
    path = tmp_path_factory.mktemp("log") / "pairs.jsonl"
    write(path, ENTRIES)
    for file, share in zip((path, *beside(path)), shares, strict=True):
        data = file.read_bytes()
        # The beginning of the progress file is a second older than the first pair.
        least = data.index(b"\n") + 1 if file == beside(path)[0] else 0
        kept = data[: least + int(share * (len(data) - least))]
        file.write_bytes(kept + b"\0" * (len(data) - len(kept)) * zeros)
    log = write(path, ENTRIES)
    assert all(entry.entry in log for entry in ENTRIES)
    assert questions(path) == wanted(ENTRIES)
    assert write(path, ENTRIES).repaired == []


def test_a_repair_is_reported(path):
    write(path, ENTRIES)
    path.write_bytes(path.read_bytes()[:-10])
    log = PairsLog(path, FACTS)
    assert ENTRIES[4].entry not in log and log.lost == 1  # 戊, whose first pair is cut off too
    (message,) = log.repaired
    assert str(path) in message and "bytes of an unfinished entry" in message
    log.close()


def test_an_entry_whose_line_of_progress_is_missing_is_done(path):
    write(path, ENTRIES[3:5])
    progress = beside(path)[0]
    progress.write_bytes(progress.read_bytes().rsplit(b"\n", 2)[0] + b"\n")
    records = []
    log = PairsLog(path, FACTS, on_finished=records.append)
    assert ENTRIES[4].entry in log and len(log.repaired) == 1
    log.close()
    assert [line["pairs"] for line in records] == [1, 2]
    assert lines(progress)[1:] == records


def test_pairs_without_any_progress_file_are_done(path):
    write(path, ENTRIES)
    for file in beside(path):
        file.unlink()
    log = PairsLog(path, FACTS)
    assert [entry.entry in log for entry in ENTRIES] == [True, False, False, True, True, False]
    log.close()


def test_pairs_that_somebody_deleted_are_asked_again(path):
    write(path, ENTRIES)
    path.unlink()
    log = PairsLog(path, FACTS)
    assert log.lost == 3 and ENTRIES[0].entry not in log and ENTRIES[1].entry in log
    log.close()


def test_an_editor_that_took_the_last_line_end(path):
    write(path, ENTRIES[:-1])
    before = contents(path)
    for file in before:
        file.write_bytes(before[file][:-1])
    log = PairsLog(path, FACTS)
    log.close()
    assert contents(path) == before and log.repaired == []


@pytest.mark.parametrize("kept", [1, 2])
def test_a_line_end_missing_within_an_entry(path, kept):
    write(path, ENTRIES[:1])
    path.write_bytes(b"\n".join(path.read_bytes().split(b"\n")[:kept]))
    write(path, ENTRIES)
    assert write(path, ENTRIES).repaired == []
    assert questions(path) == wanted(ENTRIES)


# -- what is not ours ------------------------------------------------------------------------------

GOOD = dict(question="问？", answer="答。", id="1", entry="0" * 32, n="1/1", generation="g")


def pair_line(**changes):
    return json.dumps({**GOOD, **changes}, ensure_ascii=False).encode() + b"\n"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b'{"question": "q", "answer": "a", "id": 1}\n', 1),
        (b'{"question": "q", "answer": "a", "id": 1}', 1),
        (b'{"question": "q", "ans', 1),  # it may be anybody's
        (b'{"question": ', 1),
        (b"hello\n", 1),
        (b"hello", 1),
        (pair_line() + b"\n", 2),
        (pair_line() + b"hello\n" + pair_line(entry="1" * 32), 2),
        (pair_line() + b"hello", 2),
        (pair_line() + b'{"question": "q", "answer": "a"}', 2),
        (pair_line() + pair_line(entry="1" * 32, n="2/2"), 2),
        (pair_line(n="1/2") + pair_line(entry="1" * 32), 2),
        (pair_line(n="1/2") + pair_line(n="2/3"), 2),
        (pair_line(n="1/3") + pair_line(n="3/3"), 2),
        (pair_line(n="1/2") + pair_line(n="2/2", entry="1" * 32), 2),
        (pair_line(n="2/1"), 1),
        (pair_line(n="0/1"), 1),
        (pair_line(n=1), 1),
        (pair_line(entry="xyz"), 1),
        (pair_line(answer=None), 1),
        (b"[1]\n", 1),
        (b"\xff\xfe\n", 1),
    ],
)
def test_what_others_wrote_is_named_and_not_touched(tmp_path, data, line):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"pairs\.jsonl, line {line}: .*--output") as caught:
        PairsLog(path, FACTS)
    assert "\n" not in str(caught.value)
    assert contents(path) == {path: data} and list(tmp_path.iterdir()) == [path]


def test_a_journal_with_a_repeated_entry_is_not_ours(path):
    write(path, ENTRIES[:1])
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(UserError, match="line 4: pair 1/3 of its entry is out of turn"):
        PairsLog(path, FACTS)


@pytest.mark.parametrize("which", [0, 1])
def test_foreign_lines_in_the_files_beside(path, which):
    write(path, ENTRIES)
    file = beside(path)[which]
    file.write_bytes(b'{"a": 1}\n' + file.read_bytes())
    before = contents(path)
    with pytest.raises(UserError, match=rf"{file.name}, line 1: "):
        PairsLog(path, FACTS)
    assert contents(path) == before


def test_names(tmp_path):
    with pytest.raises(UserError, match=r"ends in \.jsonl"):
        PairsLog(tmp_path / "pairs.json", FACTS)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be opened"):
        PairsLog(tmp_path / "file" / "pairs.jsonl", FACTS)


def test_two_never_write_the_same_file(path):
    log = PairsLog(path, FACTS)
    log.add(ENTRIES[0])
    before = contents(path)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from minigpt.synthesis.journal import PairsLog\n"
        f"PairsLog({str(path)!r}, {FACTS!r})"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode == 1 and "another run is writing it" in other.stderr
    assert contents(path) == before
    log.add(ENTRIES[3])
    log.close()
    assert write(path, ENTRIES).pairs == 6


def test_a_writer_that_is_killed_frees_the_file(path):
    write(path, ENTRIES[:1])
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from minigpt.synthesis.journal import PairsLog\n"
        f"log = PairsLog({str(path)!r}, {FACTS!r})\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other = subprocess.Popen([sys.executable, "-c", code], **pipes)
    try:
        assert other.stdout.readline().strip() == b"open"
        with pytest.raises(UserError, match="another run is writing it; wait for its end"):
            PairsLog(path, FACTS)
    finally:
        other.kill()
        other.communicate()
    assert write(path, ENTRIES).pairs == 6


@pytest.mark.parametrize("kind", ["symbolic link", "hard link"])
def test_two_names_of_one_file(path, tmp_path, kind):
    write(path, ENTRIES[:1])
    other = tmp_path / "other" / "name.jsonl"
    other.parent.mkdir()
    (other.symlink_to if kind == "symbolic link" else other.hardlink_to)(path)
    log = PairsLog(path, FACTS)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from minigpt.synthesis.journal import PairsLog\n"
        f"PairsLog({str(other)!r}, {FACTS!r})"
    )
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert second.returncode == 1 and "another run is writing it" in second.stderr
    log.close()
    assert list(other.parent.iterdir()) == [other]
    if kind == "symbolic link":  # resumes the file of the other name
        assert len(PairsLog(other, FACTS)) == 1
        assert beside(other) == beside(path)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX's")
def test_a_full_disk_leaves_the_file_whole(path):
    """A limit on the size of files refuses a write as a full disk does, in the midst of it."""
    import resource

    log, n = PairsLog(path, FACTS), 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written .* Make room") as caught:
            for n in range(100):
                log.add(finished(f"第{n}篇"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    log.close()
    assert 3 < n < 20 and path.read_bytes().endswith(b"\n")
    entries = [finished(f"第{i}篇") for i in range(30)]
    log = PairsLog(path, FACTS)
    assert [entry.entry in log for entry in entries] == [i < n for i in range(30)]
    log.close()
    write(path, entries)
    assert questions(path) == wanted(entries)
