"""Work in several processes, results in order.

with_workers = ordered_map(Cleaner, settings, chunks, processes=2)
for result in with_workers: …     # Cleaner(settings)(chunk) for each chunk, in their order
"""

import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from multiprocessing.connection import wait

from minigpt.common.errors import UserError

_AHEAD = 2  # tasks


def core_count():
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(make, argument, tasks, processes):
    """Yield make(argument)(task) for each task, in the order of tasks.

    make(argument) is called once in each process, so it may load data that is slow to send. At most
    3 × processes tasks are read ahead of the results. With one process the work is done in this
    process. An error in a worker is raised here, in its place among the results. If this process
    dies, the workers end.
    """
    if processes == 1:
        work = make(argument)
        for task in tasks:
            yield work(task)
        return
    workers = []
    try:
        for _ in range(processes):
            workers.append(_Worker(make, argument))
        yield from _spread(workers, enumerate(tasks))
    finally:
        for worker in workers:
            worker.stop()


def attempt(work, task):
    """work(task), in another process: ("done", its result), or the kind of its error and a text."""
    try:
        return "done", work(task)
    except UserError as error:
        return "user error", str(error)
    except Exception:
        return "error", traceback.format_exc()


def result_of(outcome, value):
    """The result of an attempt(); its error is raised here."""
    if outcome == "done":
        return value
    raise UserError(value) if outcome == "user error" else RuntimeError(value)


def _spread(workers, tasks):
    by_connection = {worker.connection: worker for worker in workers}
    results, sent, taken, exhausted = {}, 0, 0, False
    while True:
        for worker in sorted(workers, key=lambda worker: worker.load):
            while worker.load < _AHEAD and sent < taken + 6 * len(workers) and not exhausted:
                task = next(tasks, None)
                if task is None:
                    exhausted = True
                else:
                    worker.send(task)
                    sent += 1
        if exhausted and sent == taken:
            return
        while taken not in results:
            for connection in wait(list(by_connection)):
                number, outcome, value = by_connection[connection].receive()
                results[number] = outcome, value
        while taken in results:
            outcome, value = results.pop(taken)
            taken += 1
            yield result_of(outcome, value)


class _Worker:
    """A process and the connection to it."""

    def __init__(self, make, argument):
        context = multiprocessing.get_context("spawn")  # the same on every system
        self.connection, theirs = context.Pipe()
        self.load = 0
        self.process = context.Process(
            target=_serve, args=(theirs, make, argument), daemon=True, name="worker"
        )
        # Ctrl-C reaches every process of the terminal. A worker ignores it from its start on: this
        # process decides.
        in_main_thread = threading.current_thread() is threading.main_thread()
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
        try:
            self.process.start()
        finally:
            if in_main_thread:
                signal.signal(signal.SIGINT, previous)
        theirs.close()

    def send(self, task):
        self._try(self.connection.send, task)
        self.load += 1

    def receive(self):
        self.load -= 1
        return self._try(self.connection.recv)

    def _try(self, function, *arguments):
        try:
            return function(*arguments)
        except (EOFError, OSError):
            self.process.join(5)
            raise UserError(
                f"a worker process ended (exit code {self.process.exitcode}), most often because "
                "memory is full: try fewer --workers"
            ) from None

    def stop(self):
        self.connection.close()  # which ends its loop
        self.process.join(5)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


def _serve(connection, make, argument):
    """Work until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tasks = queue.SimpleQueue()
    threading.Thread(target=_read_ahead, args=(connection, tasks), daemon=True).start()
    made = []

    def work(task):
        if not made:
            made.append(make(argument))
        return made[0](task)

    while (task := tasks.get()) is not None:
        number, value = task
        try:
            connection.send((number, *attempt(work, value)))
        except OSError:
            break
    sys.exit(0)


def _read_ahead(connection, tasks):
    try:
        while True:
            tasks.put(connection.recv())
    except (EOFError, OSError):
        tasks.put(None)
