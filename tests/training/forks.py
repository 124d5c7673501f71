"""Processes that begin as copies of the test's own: without the seconds that importing torch takes.

(code, output), = forked(lambda: train(...), tmp_path)            # one process
results = forked(work, tmp_path, world_size=2)                    # two that torch.distributed joins
"""

import importlib
import os
import signal
import socket
import sys
import time
import traceback

import pytest

from minigpt.common.errors import UserError

# What DDP and FSDP import when they are first used.
HEAVY = ("torch._dynamo", "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")


def forked(work, folder, world_size=1, timeout=120):
    """Call work() in new processes: [(exit code, what it printed), …] by rank. The code is negative
    for a process that a signal killed, 2 after a UserError, 1 after another error."""
    if world_size > 1:
        for name in HEAVY:  # here once, and not in every copy
            importlib.import_module(name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]))
    paths = [folder / f"forked-{rank}.txt" for rank in range(world_size)]
    processes = []
    for rank, path in enumerate(paths):
        process = os.fork()
        if process == 0:
            if world_size > 1:
                os.environ.update(address, RANK=str(rank), WORLD_SIZE=str(world_size))
            _work(work, path)
        processes.append(process)
    codes = [_wait(process, time.monotonic() + timeout) for process in processes]
    return [(code, path.read_text("utf-8")) for code, path in zip(codes, paths, strict=True)]


def _work(work, path):
    """In the child process: exits here, so that it never continues the test."""
    code = 1
    try:
        sys.stdout = sys.stderr = open(path, "w", encoding="utf-8", buffering=1)
        work()
        code = 0
    except UserError as error:
        print(error)
        code = 2
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _wait(process, deadline):
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
