"""Ordered results from several processes, bounded queues, and processes that fail or die."""

import ctypes
import errno
import logging
import multiprocessing.synchronize
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tools import doctor
from utils.checks import InputError
from utils.parallel import MOST_THREADS, in_order, in_threads, pool_of

ROOT = Path(__file__).resolve().parents[2]
in_processes = pytest.mark.skipif(pool_of(1)[0] is None, reason=f"no processes: {pool_of(1)[1]}")


def squared(number):
    time.sleep(0.05 * (number == 0))  # the first is the slowest
    return number * number


def failing(number):
    if number == 2:
        raise InputError("two is refused")
    return number


def dying(number):
    os._exit(1)


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(jobs):
    assert list(in_order(squared, range(7), jobs)) == [n * n for n in range(7)]


@in_processes
def test_items_are_not_read_ahead_of_the_results():
    read = []

    def items():
        for number in range(20):
            read.append(number)
            yield number

    results = in_order(squared, items(), 2)
    assert next(results) == 0
    assert len(read) <= 3
    results.close()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_reaches_the_caller(jobs):
    results = in_order(failing, range(5), jobs)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(InputError, match="two is refused"):
        next(results)


def test_threads_give_what_a_plain_loop_gives():
    assert list(in_threads(squared, range(40))) == [n * n for n in range(40)]
    assert list(in_threads(squared, [])) == []


def test_threads_work_while_the_next_items_are_made_and_these_are_not_read_ahead():
    """Each item is made only when the function works on the previous one; without threads, this would deadlock."""
    begun, read = [threading.Event() for _ in range(20)], []

    def items():
        for number in range(20):
            assert number == 0 or begun[number - 1].wait(10)
            read.append((number, threading.get_ident()))
            yield number

    def work(number):
        begun[number].set()
        return threading.get_ident()

    results = in_threads(work, items())
    here = threading.get_ident()
    assert next(results) != here
    assert len(read) <= MOST_THREADS + 1 and {place for _, place in read} == {here}
    assert here not in set(results) and len(read) == 20


def test_a_failure_in_a_thread_reaches_the_caller_and_ends_the_others():
    done = []
    results = in_threads(lambda number: done.append(failing(number)), range(1000))
    with pytest.raises(InputError, match="two is refused"):
        list(results)
    assert {0, 1} <= set(done) and len(done) <= 2 * MOST_THREADS + 2


@in_processes
def test_a_killed_process_is_explained():
    with pytest.raises(InputError, match="lack of memory; try --jobs 1"):
        list(in_order(dying, range(3), 2))


def test_jobs_must_be_positive():
    with pytest.raises(InputError, match="--jobs 0: expected at least 1"):
        list(in_order(squared, [1], 0))


class Missing:
    """The ways in which Python reports missing semaphores."""

    @staticmethod
    def refused(patch, number):
        def fail(*arguments):
            raise OSError(number, os.strerror(number))

        patch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", fail)

    @staticmethod
    def not_built(patch, _):
        for name, value in {"_system_limits_checked": False, "_system_limited": None}.items():  # cached result
            patch.setattr(f"concurrent.futures.process.{name}", value)
        patch.setitem(sys.modules, "multiprocessing.synchronize", None)

    @staticmethod
    def limited(patch, _):
        def fail():
            raise NotImplementedError("system provides too few semaphores (30 available, 256 necessary)")

        patch.setattr("concurrent.futures.process._check_system_limits", fail)


WAYS = [(Missing.refused, number) for number in (errno.ENOENT, errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOSYS)]


@pytest.mark.parametrize(("way", "number"), [*WAYS, (Missing.not_built, None), (Missing.limited, None)])
def test_without_semaphores_one_process_does_the_work_and_says_so(way, number, monkeypatch, caplog):
    way(monkeypatch, number)
    monkeypatch.setattr(logging.getLogger("mrccl"), "propagate", True)
    read = []
    results = in_order(lambda item: read.append(item) or (item, os.getpid()), range(3), 2)
    assert list(results) == [(item, os.getpid()) for item in read] and read == [0, 1, 2]
    [line] = set(caplog.messages)  # pytest sees a line twice if the log was started before
    assert line.startswith("--jobs 2: runs in one process: the system provides no semaphores (")
    assert line.endswith("; make sure that /dev/shm exists, is writable and not full; Docker has --shm-size")
    assert not number or f"({os.strerror(number)})" in line
    assert any("--jobs runs in one process" in line for state, line in doctor.machine() if state == doctor.NOTE)


def test_doctor_is_silent_where_there_are_semaphores():
    assert not [line for _, line in doctor.machine() if "semaphores" in line] or pool_of(1)[0] is None


SQUARES = "from tests.utils.test_parallel import in_order, squared; print(list(in_order(squared, range(3), 2)))"


def test_a_dev_shm_that_may_not_be_written_is_no_obstacle():
    hide = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o ro tmpfs /dev/shm && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*hide, "true"], capture_output=True).returncode:
        pytest.skip("needs 'unshare -rm mount', which is not permitted here")
    command = [*hide, sys.executable, "-c", SQUARES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[0, 1, 4]\n"
    assert "runs in one process: the system provides no semaphores (Read-only file system)" in done.stderr


ORPHANS = """
import os, time
from tests.utils.test_parallel import waiting
from utils.parallel import in_order

if __name__ == "__main__":
    for process in in_order(waiting, [0, 0, 1, 1], 2):
        print(process, flush=True)
"""


def waiting(seconds):
    time.sleep(60 * seconds)
    return os.getpid()


def is_running(process):
    """Tell whether a process is running, not gone and not a zombie."""
    try:
        return open(f"/proc/{process}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@in_processes
def test_the_processes_of_a_killed_run_end_with_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ORPHANS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    workers = {int(process.stdout.readline()) for _ in range(2)}
    assert all(is_running(worker) for worker in workers)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(is_running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(worker) for worker in workers)


def faults_of_the_second_array(_):
    """Return the page faults while filling 40 MB that were filled and freed once before."""
    import resource

    import numpy as np

    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(5_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@in_processes
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="memory is kept with glibc only")
def test_memory_that_was_freed_serves_again():
    fresh = list(in_order(faults_of_the_second_array, [0, 1], 2))
    assert max(fresh) < 5, "page faults"
    assert faults_of_the_second_array(0) > 10, "in a process that gives memory back"
