"""Files and folders that are whole, or as they were."""

import errno
import os
from pathlib import Path

import pytest

from minigpt.files import set_aside, written_whole

ROOT = Path(__file__).resolve().parent.parent


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    target = tmp_path / "new" / "it"
    with written_whole(target) as partial:
        partial.write_text("first")
        assert not target.exists()
    for error in (RuntimeError, KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")):
        with pytest.raises((RuntimeError, KeyboardInterrupt, OSError)), written_whole(target) as it:
            it.write_text("sec")
            raise error
        assert target.read_text() == "first" and list(target.parent.iterdir()) == [target]
    with written_whole(target) as partial:
        partial.write_text("third")
    assert target.read_text() == "third" and list(target.parent.iterdir()) == [target]


def write_folder(target, name):
    with written_whole(target) as partial:
        partial.mkdir()
        (partial / name).write_text(name)
        if name == "bad":
            raise RuntimeError


def test_a_folder_takes_its_place_when_it_is_whole(tmp_path):
    target = tmp_path / "it"
    for name in (".it.partial", ".it.0123abcd.partial", ".it.more.0123abcd.partial"):
        (tmp_path / name).mkdir()  # of writers that were killed; the last of another target
    target.mkdir()  # an empty one
    write_folder(target, "a")
    write_folder(target, "b")
    with pytest.raises(RuntimeError):
        write_folder(target, "bad")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert {path.name for path in tmp_path.iterdir()} == {"it", ".it.more.0123abcd.partial"}


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path):
    target = tmp_path / "it"
    write_folder(target, "a")
    with pytest.raises(OSError), written_whole(target) as partial:
        partial.write_text("a file")
    assert [path.name for path in target.iterdir()] == ["a"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_writer_that_was_killed_between_its_renames(tmp_path):
    """The old folder stands aside then: it comes back, whether or not the next writer succeeds."""
    target = tmp_path / "it"
    write_folder(target, "a")
    target.rename(set_aside(target))
    with pytest.raises(RuntimeError):
        write_folder(target, "bad")
    assert [path.name for path in target.iterdir()] == ["a"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "there").write_text("old")
    link = tmp_path / "link"
    link.symlink_to("there")
    with written_whole(link) as partial:
        partial.write_text("new")
    assert link.is_symlink() and (tmp_path / "there").read_text() == "new"


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="devices as on POSIX")
def test_a_device_stays_one():
    with written_whole("/dev/null") as there:
        assert str(there) == "/dev/null"
        there.write_text("nothing")
    assert not os.path.isfile("/dev/null") and os.path.exists("/dev/null")
