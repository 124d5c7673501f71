"""Locks between processes: one writer of a file or folder at a time.

    with locked(beside("data/processed"), "data/processed", "--dataset"):
        …                           # a second process gets a UserError that names the first

The operating system holds the lock (flock; on Windows a locked byte), so it ends with its process,
also by kill -9. Readers take no lock. A lock file says who holds it, and is removed on release.
"""

import contextlib
import errno
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path

from minigpt.common.errors import UserError

_LOCKED_BYTE = 1 << 40  # a lock of Windows hides bytes from other programs: lock one beyond the end
_HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_HOLDER = re.compile(r"(\d{1,10}) (\S{1,64}) (\S{1,64})\n")
_held = {}  # lock file → [number of locked() blocks of this process, fd, folders made for it]
_threads = threading.Lock()  # guards _held
_noted = []  # targets about which the user was told that there are no locks


def beside(path):
    """The lock file of `path`: beside it, as what is replaced whole cannot hold its own lock."""
    path = Path(os.path.realpath(path))
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def locked(lock, target, option="", wait=0.0):
    """Hold the lock file `lock` within the block, which writes `target`. Yield whether the lock is
    real: a file system without locks gives a note on stderr, and False.

    A process that holds a lock may take it again. UserError where another process holds it for
    longer than `wait` seconds; the message names `option`, by which the user chooses the target.
    OSError where no lock file can be written.
    """
    lock = Path(os.path.realpath(lock))
    with _threads:
        if lock not in _held:
            _held[lock] = [0, *_acquire(lock, target, option, wait)]
        _held[lock][0] += 1
        is_real = _held[lock][1] is not None
    try:
        yield is_real
    finally:
        with _threads:
            _held[lock][0] -= 1
            if not _held[lock][0]:
                _release(lock, *_held.pop(lock)[1:])


def lock_fd(fd):
    """Lock an open file for as long as it is open: True, or False where another process holds it.
    OSError of _NO_LOCKS where the file system has no locks."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise
    return True


def lock_if_possible(fd, target):
    """lock_fd(), but None with a note on stderr where the file system has no locks."""
    try:
        return lock_fd(fd)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if not _noted:
            print(
                f"note: {target}: this file system has no locks ({error.strerror}); do not start "
                "two runs that write there at the same time",
                file=sys.stderr,
            )
        _noted.append(target)
        return None


def _acquire(lock, target, option, wait):
    """(fd, folders made): the lock file, open and locked; fd is None where there are no locks."""
    made = _make_parents(lock)
    end = time.monotonic() + wait
    while True:
        fd = _open(lock)
        try:
            got = lock_if_possible(fd, target)
            if got and not _is_file(fd, lock):  # its last holder removed it: there may be a new one
                os.close(fd)
                continue
            if got:
                _sign(fd)
                return fd, made
            if got is None or time.monotonic() >= end:
                holder = _holder(fd)
                os.close(fd)
                if got is None:
                    _remove(lock, made)
                    return None, []
                break
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise
        os.close(fd)
        time.sleep(0.02)
    other = f", or give another {option}" if option else ""
    raise UserError(f"{target}: {holder} is writing it; wait for its end{other}")


def _make_parents(lock):
    """Make the lock's folder; return the folders that were made, the innermost first."""
    missing = [folder for folder in lock.parents if not folder.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _open(lock):
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(lock, flags, 0o666)
    except PermissionError:
        # Another user's run was killed and left its file. Reading it is enough to lock it.
        return os.open(lock, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))


def _is_file(fd, lock):
    """Whether the open file is still what the path names."""
    if os.name == "nt":
        return True  # Windows does not remove an open file
    try:
        return os.path.samestat(os.fstat(fd), os.stat(lock))
    except FileNotFoundError:
        return False


def _sign(fd):
    """Write who holds the lock; only messages need it."""
    name = re.sub(r"[^\w.-]", "", Path(sys.argv[0]).name)[:64] or "python"
    host = re.sub(r"[^\w.-]", "", socket.gethostname())[:64] or "host"
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, f"{os.getpid()} {host} {name}\n".encode())


def _holder(fd):
    """Who holds the lock, in words."""
    with contextlib.suppress(OSError):
        os.lseek(fd, 0, os.SEEK_SET)
        match = _HOLDER.fullmatch(os.read(fd, 256).decode("utf-8", "replace"))
        if match:
            return f"{match[3]} (process {match[1]} on {match[2]})"
    return "another process"


def _release(lock, fd, made):
    if fd is None:
        return
    if os.name == "nt":
        os.close(fd)  # Windows removes no open file; where another process has opened it, it stays
        _remove(lock, made)
    else:
        if _is_file(fd, lock):  # never another process's lock
            _remove(lock, made)
        os.close(fd)


def _remove(lock, made):
    """Remove a lock file, and the folders that were made for it where nothing else is in them."""
    with contextlib.suppress(OSError):
        lock.unlink(missing_ok=True)
        for folder in made:
            folder.rmdir()
