"""Work on a Ray cluster, results in order: ordered_map() of processes.py on many machines.

    for result in cluster_map(Cleaner, settings, chunks): …

RAY_ADDRESS names the cluster (`ray start --head` prints it); without it Ray starts processes on
this machine. Every machine needs this project at the same path, with its environment, and the files
that the settings name. A task that is lost with its machine is done again elsewhere.
"""

import os
import pickle
import socket
from collections import deque

from minigpt.common.errors import ROOT, UserError
from minigpt.data.parallel.processes import attempt, core_count, result_of

INSTALL = "pip install ray==2.60.0"
RETRIES = 3  # of a task that was lost with its process or its machine
AHEAD = 3  # tasks for each core that are read ahead of the results
STORE = 2**28  # bytes of shared memory, of a cluster on this machine; a result has about a megabyte
_workers = {}  # in a process of the cluster: pickled (make, argument) → what make(argument) gave


def cluster_map(make, argument, tasks, at_most=0):
    """Yield make(argument)(task) for each task, in the order of tasks; errors and laziness as in
    ordered_map(). make(argument) is called once in each process of the cluster.

    at_most: of tasks at a time; 0: AHEAD for each core of the cluster. UserError where Ray is not
    installed or its cluster cannot be reached, and for a task that was lost RETRIES times.
    """
    ray = connect(at_most)
    waiting = deque()  # references to results, in order
    try:
        work = ray.remote(max_retries=RETRIES, num_cpus=1)(_remote(os.getcwd()))
        given = ray.put(pickle.dumps((make, argument)))
        for task in tasks:
            waiting.append(work.remote(given, pickle.dumps(task)))
            # Asked each time: machines may join and leave.
            while len(waiting) >= (at_most or AHEAD * _cores(ray)):
                yield _taken(ray, waiting.popleft())
        while waiting:
            yield _taken(ray, waiting.popleft())
    finally:
        ray.shutdown()


def connect(cores=0):
    """The module ray, connected. cores: of a cluster on this machine; 0: all."""
    address = os.environ.get("RAY_ADDRESS")
    # Read when Ray is imported and started: it reports nothing about its use, and a cluster on this
    # machine listens on 127.0.0.1 alone, as it does on other systems than Linux.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if not address:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
    except ImportError:
        raise UserError(f"--engine=ray: Ray is not installed; {INSTALL}") from None
    options = dict(address=address or "local", log_to_driver=False, logging_level="ERROR")
    if not address:
        cores = cores or core_count()
        options |= dict(num_cpus=cores, object_store_memory=STORE, include_dashboard=False)
    try:
        if address:
            _knock(address)
        ray.init(**options)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        where = f"RAY_ADDRESS={address}" if address else "--engine=ray"
        raise UserError(
            f"{where}: Ray cannot be reached ({_first_line(error)}); start it with: ray start "
            "--head, set RAY_AUTH_MODE=token if it has Ray's token, or leave RAY_ADDRESS out"
        ) from None
    return ray


def _knock(address):
    """OSError if nothing listens at HOST:PORT. Ray itself tries it for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.rpartition("/")[2].strip("[]"), int(port)), 5).close()


def _cores(ray):
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _remote(folder):
    """The function of a task. Ray sends it as it is, so that a process of the cluster can find the
    project; what it is given is pickled, because that is read before the function is called."""
    root, do = str(ROOT), pickle.dumps(do_task)

    def work(given, task):
        import os
        import pickle
        import sys

        if root not in sys.path:
            sys.path.insert(0, root)
            os.chdir(folder)  # relative paths of the settings
        return pickle.dumps(pickle.loads(do)(given, pickle.loads(task)))

    return work


def do_task(given, task):
    """In a process of the cluster: attempt() the task with the worker of `given`."""

    def work(task):
        if given not in _workers:
            make, argument = pickle.loads(given)
            _workers[given] = make(argument)
        return _workers[given](task)

    return attempt(work, task)


def _taken(ray, reference):
    """The result of a task. UserError where it was lost, or failed outside of this project."""
    try:
        return result_of(*pickle.loads(ray.get(reference)))
    except ray.exceptions.RayError as error:
        raise UserError(
            f"a part of the input was lost {RETRIES + 1} times on the Ray cluster, or cannot be "
            f"computed there ({_first_line(error)}). Most often memory is full, or a machine does "
            f"not have this project at {ROOT}"
        ) from None


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
