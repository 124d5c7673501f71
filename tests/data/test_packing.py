"""Blocks: packing, masks worked out by hand, and a folder that is whole or not there."""

import errno

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.data import packing
from minigpt.data.packing import Segments, SplitWriter, pack_best_fit, replacing, token_dtype

PAD = 99
U2 = np.dtype("<u2")


def pieces_of(*pieces):
    """Segments from (ids, first, last)."""
    return Segments.of([(np.array(ids, np.uintc), first, last) for ids, first, last in pieces], U2)


def write(folder, layout, block_size, *parts):
    """(tokens, mask, counts) of what a SplitWriter makes of the parts, one add() each."""
    writer = SplitWriter(folder, "train", layout, block_size, PAD, U2)
    for part in parts:
        writer.add(part)
    counts = writer.finish()
    tokens = np.fromfile(folder / "train.bin", "<u2").reshape(-1, block_size)
    mask = np.fromfile(folder / "train.mask", "u1").reshape(-1, block_size)
    return tokens.tolist(), mask.tolist(), counts


def test_dtype():
    assert token_dtype(2**16).str == "<u2" and token_dtype(2**16 + 1).str == "<u4"


# -- packing ---------------------------------------------------------------------------------------


def test_best_fit_by_hand():
    # 6 | 5 | 4 into the 6 (full) | 3 into the 5 (room 2) | 2 into the 5 (full) | 1 alone
    assert pack_best_fit([5, 6, 4, 1, 3, 2], 10) == [[0, 4, 5], [1, 2], [3]]
    # 7 and 6 open rows; 3 goes where it fits best (to 7), not where it fits first.
    assert pack_best_fit([6, 7, 3], 10) == [[0], [1, 2]]
    assert pack_best_fit([], 10) == []
    assert pack_best_fit([10, 10], 10) == [[0], [1]]


@given(st.lists(st.integers(1, 40), max_size=80), st.integers(40, 60))
def test_packing_loses_nothing_and_wastes_little(lengths, capacity):
    rows = pack_best_fit(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    filled = [sum(lengths[i] for i in row) for row in rows]
    assert all(0 < size <= capacity for size in filled)
    # No two rows would fit into one: best-fit opens a row only where no other has room.
    assert all(a + b > capacity for a, b in zip(sorted(filled), sorted(filled)[1:], strict=False))
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert all(row == sorted(row) for row in rows)


# -- rows and masks --------------------------------------------------------------------------------

TEXTS = pieces_of(([1, 2, 3], 1, 3), ([4, 5, 6, 7], 1, 4), ([8], 1, 1))


def test_split_and_pad_by_hand(tmp_path):
    for layout in ("split", "pad"):
        tokens, mask, counts = write(tmp_path, layout, 5, TEXTS)
        assert tokens == [[1, 2, 3, PAD, PAD], [4, 5, 6, 7, PAD], [8, PAD, PAD, PAD, PAD]]
        assert mask == [[2, 1, 1, 2, 0], [2, 1, 1, 1, 2], [2, 2, 0, 0, 0]]
        assert counts == {"blocks": 3, "tokens": 8, "targets": 5, "pieces": 3, "padding": 7}


def test_targets_are_those_that_were_asked_for(tmp_path):
    question_answer = pieces_of(([1, 2, 50, 3, 4], 3, 5), ([1, 2, 3], 1, 2))
    _, mask, counts = write(tmp_path, "split", 6, question_answer)
    assert mask == [[2, 0, 0, 1, 1, 2], [2, 1, 0, 2, 0, 0]] and counts["targets"] == 3


def test_concat_by_hand(tmp_path):
    tokens, mask, counts = write(tmp_path, "concat", 6, TEXTS)
    # 4 opens a row, 3 opens another, 1 goes to the fuller one.
    assert tokens == [[1, 2, 3, PAD, PAD, PAD], [4, 5, 6, 7, 8, PAD]]
    assert mask == [[2, 1, 1, 2, 0, 0], [2, 1, 1, 1, 2, 2]]
    assert counts == {"blocks": 2, "tokens": 8, "targets": 5, "pieces": 3, "padding": 4}


def test_packed_by_hand(tmp_path):
    texts = pieces_of(([1, 2, 3], 0, 3), ([4, 5], 0, 2), ([6, 7, 8], 1, 2))
    for parts in ([texts], [texts.chosen(np.arange(3) == i) for i in range(3)]):
        tokens, mask, counts = write(tmp_path, "packed", 3, *parts)
        assert tokens == [[1, 2, 3], [4, 5, 6], [7, 8, PAD]]
        assert mask == [[2, 1, 1], [2, 1, 0], [2, 0, 0]]
        assert counts == {"blocks": 3, "tokens": 8, "targets": 3, "pieces": 3, "padding": 1}


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=30),
    st.sampled_from(["pad", "split", "concat", "packed"]),
    st.integers(1, 40),
)
def test_every_segment_is_in_the_blocks(tmp_path_factory, lengths, layout, window):
    folder = tmp_path_factory.getbasetemp()
    stops = np.cumsum(lengths).tolist()
    pieces = [
        (list(range(100 + b - n, 100 + b)), 1, n) for b, n in zip(stops, lengths, strict=True)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "WINDOW", window)  # small windows lose and double nothing either
        tokens, mask, counts = write(folder, layout, 9, *(pieces_of(piece) for piece in pieces))
    flat = [token for row in tokens for token in row if token != PAD]
    assert sorted(flat) == list(range(100, 100 + stops[-1])) and counts["tokens"] == len(flat)
    assert counts["padding"] == len(tokens) * 9 - len(flat)
    if layout == "packed":
        assert flat == sorted(flat)
        return
    found = []
    for row, bits in zip(tokens, mask, strict=True):
        begins = [i for i, bit in enumerate(bits) if bit & 2]
        for begin, end in zip(begins, [*begins[1:], 9], strict=True):
            found.append((row[begin:end], bits[begin:end]))
    texts = [(ids, bits) for ids, bits in found if PAD not in ids]
    assert sorted(ids for ids, _ in texts) == [ids for ids, _, _ in pieces]
    assert all(bits == [2] + [1] * (len(ids) - 1) for ids, bits in texts)
    assert all(bits[1:] == [0] * (len(bits) - 1) for ids, bits in found if PAD in ids)


# -- a folder that is whole or not there -----------------------------------------------------------


def fill(folder, text):
    (folder / "train.bin").write_text(text)
    return folder


def held(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_new_data_takes_the_place_of_old(tmp_path):
    data = tmp_path / "deep/data"
    for text in ("old", "new"):
        with replacing(data) as folder:
            fill(folder, text)
            assert not data.exists() or held(data) == {"train.bin": "old"}
    assert held(data) == {"train.bin": "new"} and list(data.parent.iterdir()) == [data]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, UserError])
def test_an_error_leaves_the_old_data(tmp_path, error):
    data = tmp_path / "data"
    data.mkdir()
    fill(data, "old")
    with pytest.raises(error), replacing(data) as folder:
        fill(folder, "half")
        raise error
    assert held(data) == {"train.bin": "old"} and list(tmp_path.iterdir()) == [data]


def test_a_full_disk_says_so(tmp_path):
    data = tmp_path / "data"
    says = r"data: cannot be written \(No space.*make room"
    with pytest.raises(UserError, match=says), replacing(data) as folder:
        fill(folder, "half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    data = tmp_path / "data"
    for name in (".data.partial", ".data.old"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, name)
    # Killed between its two renames: the old data has another name, and is complete.
    with pytest.raises(ValueError), replacing(data):
        raise ValueError
    assert held(data) == {"train.bin": ".data.old"} and list(tmp_path.iterdir()) == [data]
    # Killed after them: the new data is in place.
    (tmp_path / ".data.old").mkdir()
    with replacing(data) as folder:
        fill(folder, "new")
    assert held(data) == {"train.bin": "new"} and list(tmp_path.iterdir()) == [data]


def test_a_failed_rename_puts_the_old_data_back(tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    fill(data, "old")
    rename = type(data).rename

    def fail_for_partial(path, target):
        if path.name.endswith(".partial"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(type(data), "rename", fail_for_partial)
    with pytest.raises(UserError, match=r"denied.*untouched"), replacing(data) as folder:
        fill(folder, "new")
    assert held(data) == {"train.bin": "old"} and list(tmp_path.iterdir()) == [data]


def test_a_folder_with_other_files_is_not_touched(tmp_path):
    (tmp_path / "train.py").write_text("code")
    says = r"has files that are no prepared data \(train\.py\)"
    with pytest.raises(UserError, match=says), replacing(tmp_path):
        pass
    file = tmp_path / "train.py"
    with pytest.raises(UserError, match="is a file"), replacing(file):
        pass
    assert held(tmp_path) == {"train.py": "code"}


def test_what_is_kept_beside_blocks_goes_with_them(tmp_path):
    """A reference's log-probabilities, also where a kill has left them half written."""
    data = tmp_path / "data"
    data.mkdir()
    fill(data, "old")
    for name in (
        "reference-train-ab.npy",
        ".reference-val-ab.npy.partial",
        ".reference-val-ab.npy.lock",
    ):
        (data / name).write_text("")
    with replacing(data) as folder:
        fill(folder, "new")
    assert held(data) == {"train.bin": "new"} and list(tmp_path.iterdir()) == [data]


def test_through_a_link(tmp_path):
    target, link = tmp_path / "disk", tmp_path / "data"
    target.mkdir()
    link.symlink_to(target, target_is_directory=True)
    with replacing(link) as folder:
        fill(folder, "new")
    assert link.is_symlink() and held(target) == {"train.bin": "new"}
