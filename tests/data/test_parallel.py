"""Work over processes: order, errors in their turn, and what happens when a process dies."""

import os
import time

import pytest

from minigpt.common.errors import UserError
from minigpt.data.parallel.processes import core_count, ordered_map


class Square:
    def __init__(self, offset):
        self.offset = offset

    def __call__(self, task):
        if task == "mistake":
            raise UserError("line 3: no JSON")
        if task == "bug":
            raise ZeroDivisionError("a bug")
        if task == "die":
            os._exit(9)
        if task == "where":
            return os.getpid()
        if task == "slow":
            return time.sleep(0.5)
        time.sleep(0.02 if task % 3 == 0 else 0)  # so that later tasks are done earlier
        return task * task + self.offset


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_the_order_of_tasks(processes):
    assert list(ordered_map(Square, 5, range(20), processes)) == [i * i + 5 for i in range(20)]


def test_no_tasks():
    assert list(ordered_map(Square, 0, [], 2)) == []


def test_the_work_is_done_in_other_processes():
    places = set(ordered_map(Square, 0, ["where"] * 8, 2))
    assert len(places) == 2 and os.getpid() not in places


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_is_raised_in_its_turn(processes):
    results = []
    with pytest.raises(UserError, match="line 3: no JSON"):
        for result in ordered_map(Square, 0, [3, 2, "mistake", 1, 0], processes):
            results.append(result)
    assert results == [9, 4]


def test_a_bug_in_a_worker_shows_its_traceback():
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        list(ordered_map(Square, 0, [1, "bug"], 2))


def test_a_worker_that_dies_is_named():
    with pytest.raises(UserError, match=r"worker process ended \(exit code 9\).*--workers"):
        list(ordered_map(Square, 0, [1, "die", 2], 2))


def test_tasks_are_read_only_a_little_ahead():
    read = []

    def tasks():
        for task in ["slow", *range(1, 60)]:
            read.append(task)
            yield task

    # While one worker is slow, the other does not go through everything.
    for taken, _ in enumerate(ordered_map(Square, 0, tasks(), 2)):
        assert len(read) <= taken + 1 + 6
    assert len(read) == 60


def test_core_count():
    assert 1 <= core_count() <= os.cpu_count()
