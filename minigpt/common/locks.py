"""Locks between processes: one writer of a file or folder at a time.

    with locked(lock_path("data/processed"), "data/processed", "--dataset"):
        …                           # a second process gets a UserError that names the first

The operating system holds the lock (flock; on Windows a locked byte), so it ends with its process,
even after kill -9. Readers take no lock. A lock file names its holder and is removed on release.

Why not the library filelock: its last version for Python 3.10 truncates the lock file, so it cannot
name the holder; it leaves the file behind; and it cannot lock a file that is already open.
"""

import contextlib
import errno
import os
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from minigpt.common.errors import UserError

_LOCKED_BYTE = 1 << 40  # beyond the end: Windows hides locked bytes from other processes
_HELD_ELSEWHERE = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_HOLDER = re.compile(r"(\d{1,10}) (\S{1,64}) (\S{1,64})\n")
_INTERVAL = 0.02  # seconds between two attempts
_warned = False  # whether the note about missing locks was printed


@dataclass
class _Lock:
    """A lock that this process holds."""

    fd: int | None  # None: the file system has no locks
    made: list  # folders that were made for the lock file
    blocks: int = 0  # locked() blocks that share it


_locks = {}  # lock file → _Lock
_mutex = threading.Lock()  # guards _locks


def lock_path(path):
    """The lock file of `path`, in the same folder; not inside it, because the folder may be
    replaced."""
    path = Path(os.path.realpath(path))
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def locked(lock, target, option="", wait=0.0, on_wait=None):
    """Hold the lock file `lock` while the block writes `target`. Yield whether a lock was
    obtained: on a file system without locks this prints a note to stderr, and yields False.

    A process that holds the lock can take it again. If another process holds it, on_wait(holder)
    is called once with its description; after `wait` seconds UserError is raised. The message
    names `option`, the flag that chooses the target. OSError if the lock file cannot be written.
    """
    lock = Path(os.path.realpath(lock))
    entry = _wait_for(lock, target, option, time.monotonic() + wait, on_wait)
    try:
        yield entry.fd is not None
    finally:
        with _mutex:
            entry.blocks -= 1
            if not entry.blocks:
                _release(lock, _locks.pop(lock))


def lock_fd(fd):
    """Lock an open file until it is closed: True, or False if another process holds the lock.
    OSError with an errno of _NO_LOCKS if the file system has no locks."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD_ELSEWHERE:
            return False
        raise
    return True


def lock_if_possible(fd, target):
    """lock_fd(), but None and a note on stderr if the file system has no locks."""
    global _warned
    try:
        return lock_fd(fd)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if not _warned:
            print(
                f"note: {target}: this file system has no locks ({error.strerror}); do not start "
                "two runs that write there at the same time",
                file=sys.stderr,
            )
        _warned = True
        return None


def _wait_for(lock, target, option, deadline, on_wait):
    """The _Lock of `lock`. Other threads can take and release locks meanwhile."""
    while True:
        with _mutex:
            entry, holder = _locks.get(lock), None
            if entry is None:
                entry, holder = _acquire(lock, target)
            if entry is not None:
                _locks[lock] = entry
                entry.blocks += 1
                return entry
        if time.monotonic() >= deadline:
            other = f", or use a different {option}" if option else ""
            raise UserError(f"{target}: {holder} is writing it; wait{other}")
        if on_wait:
            on_wait(holder)
            on_wait = None
        time.sleep(_INTERVAL)


def _acquire(lock, target):
    """Try to lock: (_Lock, None), or (None, description of the process that holds it)."""
    while True:
        made = _make_parents(lock)
        try:
            fd = _open(lock)
        except FileNotFoundError:  # the last holder removed the folder, too
            continue
        keep = False
        try:
            got = lock_if_possible(fd, target)
            if got is False:
                return None, _read_holder(fd)
            if got is None:
                _remove(lock, made)
                return _Lock(None, []), None
            if _is_same_file(fd, lock):  # else its last holder removed it: try again
                _write_holder(fd)
                keep = True
                return _Lock(fd, made), None
        finally:
            if not keep:
                os.close(fd)


def _make_parents(lock):
    """Make the lock's folder; return the folders that were missing, the innermost first."""
    missing = [folder for folder in lock.parents if not folder.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _open(lock):
    no_links = getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | no_links, 0o666)
    except PermissionError:
        # Stale file owned by another user. A file open for reading can be locked, too.
        return os.open(lock, os.O_RDONLY | no_links)


def _is_same_file(fd, lock):
    """Whether the open file is still the one at the path."""
    if os.name == "nt":
        return True  # Windows does not remove an open file
    try:
        return os.path.samestat(os.fstat(fd), os.stat(lock))
    except FileNotFoundError:
        return False


def _write_holder(fd):
    """Write into the lock file who holds it. Only messages need it, so errors are ignored."""
    name = re.sub(r"[^\w.-]", "", Path(sys.argv[0]).name)[:64] or "python"
    host = re.sub(r"[^\w.-]", "", socket.gethostname())[:64] or "host"
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, f"{os.getpid()} {host} {name}\n".encode())


def _read_holder(fd):
    """Who holds the lock, for a message."""
    with contextlib.suppress(OSError):
        os.lseek(fd, 0, os.SEEK_SET)
        match = _HOLDER.fullmatch(os.read(fd, 256).decode("utf-8", "replace"))
        if match:
            return f"{match[3]} (process {match[1]} on {match[2]})"
    return "another process"


def _release(lock, entry):
    if entry.fd is None:
        return
    if os.name == "nt":
        os.close(entry.fd)  # Windows cannot remove an open file
        _remove(lock, entry.made)
    else:
        if _is_same_file(entry.fd, lock):  # else the file at the path is another process's lock
            _remove(lock, entry.made)
        os.close(entry.fd)


def _remove(lock, made):
    """Remove the lock file, and those of the folders made for it that are empty."""
    with contextlib.suppress(OSError):
        lock.unlink(missing_ok=True)
        for folder in made:
            folder.rmdir()
