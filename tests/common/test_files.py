"""Files and folders that are whole, or as they were."""

import errno
import os
import threading

import pytest

from minigpt.common import files
from minigpt.common.errors import UserError
from minigpt.common.files import read_json, set_aside, written_whole


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
    """The old folder was moved aside: it comes back, whether or not the next writer succeeds."""
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


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot sync a folder")
@pytest.mark.parametrize("is_folder", [False, True])
def test_data_is_on_the_disk_before_the_rename_and_the_rename_after_it(
    tmp_path, monkeypatch, is_folder
):
    """What a power cut leaves cannot be tried here; the order of the system calls can."""
    calls, fsync, target = [], os.fsync, tmp_path / "it"
    names = {}

    def note(fd):
        calls.append(names.get(os.fstat(fd).st_ino, "?"))
        fsync(fd)

    def note_rename(path, new):
        calls.append("rename")
        return rename(path, new)

    rename = type(target).replace
    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(type(target), "replace", note_rename)
    names[os.stat(tmp_path).st_ino] = "parent"
    with written_whole(target) as partial:
        if is_folder:
            partial.mkdir()
            (partial / "file").write_text("text")
            names[os.stat(partial / "file").st_ino] = "file"
            names[os.stat(partial).st_ino] = "folder"
        else:
            partial.write_text("text")
            names[os.stat(partial).st_ino] = "file"
    assert calls == ["file"] + ["folder"] * is_folder + ["rename", "parent"]


def test_threads_that_write_one_file(tmp_path):
    """Each has a temporary name of its own, which the others do not take for a killed writer's."""
    target, failures = tmp_path / "it", []

    def write(text):
        try:
            for _ in range(50):
                with written_whole(target) as partial:
                    partial.write_text(text * 1000)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(set(target.read_text())) == 1 and len(target.read_text()) == 1000
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[" * 100_000, "nested more than 100 levels deep"),
        (b'{"a":' * 100_000, "nested more than 100 levels deep"),
        (b"[1]", "expected a JSON object, found list"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_json_from_anywhere(tmp_path, data, says):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=says) as caught:
        read_json(path, "copy it again")
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert str(caught.value).endswith("copy it again")


def test_json_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_JSON", 2**20)
    path = tmp_path / "config.json"
    path.write_text('{"a": "' + "x" * 2**20 + '"}')
    with pytest.raises(UserError, match="larger than 1 MB; copy it again"):
        read_json(path, "copy it again")
