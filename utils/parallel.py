"""Process many subjects in parallel, with ordered results and constant memory, and handle failures."""

import collections
import ctypes
import logging
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from utils.checks import InputError
from utils.disk import trouble_with_disk

log = logging.getLogger("mrccl")

MOST_THREADS = 8  # each holds a subject or two
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def attempt(deed, subject, keep_going):
    """Call a function that processes one subject.

    Returns:
        `(result, [])`, or `(None, lines)` with the problems of the subject; under `keep_going`, an error of the suite
        becomes such a line, too. Otherwise it is raised; problems with the disk are always raised.
    """
    try:
        return deed(), []
    except InputError as error:
        lines = error.lines
    except Exception as error:
        if not keep_going or trouble_with_disk(error):
            raise
        lines = [f"{type(error).__name__}: {error} (without --keep-going the full report is shown)"]
    return None, [f"{subject}: {line.removeprefix(f'{subject}: ')}" for line in lines]


def in_order(function, items, jobs):
    """Yield `function(item)` in the order of the items, from several processes.

    Args:
        function: Function of one item, importable or a `functools.partial` of such a function.
        items: Iterable; it is read no faster than results are consumed, and at most `jobs` + 1 results wait.
        jobs: Number of processes; 1 uses the current one. If the system has no semaphores, any number does so, with a
            warning.

    Raises:
        InputError: `jobs` is below 1, or a process was killed, for instance because memory ran out.
    """
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: expected at least 1")
    pool, trouble = pool_of(jobs) if jobs > 1 else (None, None)
    if trouble:
        log.warning("--jobs %d: runs in one process: %s", jobs, trouble)
    if pool is None:
        yield from map(function, items)
        return
    with pool:
        try:
            yield from _in_order(pool, function, items, jobs)
        except BrokenProcessPool:
            raise InputError(f"a process was killed, most likely for lack of memory; try --jobs {jobs // 2}") from None


def pool_of(jobs):
    """Return `(pool, None)`, or `(None, the reason why there is none, with its cure)`.

    Processes wait for one another by semaphores, which Linux keeps in /dev/shm. In some containers and sandboxes, that
    is missing, full or read-only.
    """
    try:
        # Spawned processes: a fork would copy the locks of the progress bar's thread.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(jobs, context, initializer=_follow_the_first), None
    except (OSError, ImportError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        cure = "make sure that /dev/shm exists, is writable and not full; Docker has --shm-size"
        return None, f"the system provides no semaphores ({reason}); {cure}"


def in_threads(function, items):
    """Yield `function(item)` in the order of the items, computed in threads while further items are produced.

    Use it for functions that spend their time in numpy, SciPy and file access, which release the interpreter lock.

    Args:
        function: Function of one item.
        items: Iterable, read in the calling thread and no further ahead than in `in_order`.
    """
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    with ThreadPoolExecutor(threads) as pool:
        yield from _in_order(pool, function, items, threads)


def _in_order(pool, function, items, ahead):
    waiting = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_the_first():
    """Leave Ctrl-C, which reaches every process of a terminal, to the parent process, and end when it ends.

    A killed parent cannot stop its workers: they would wait for work forever, or interfere with the resumed run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _keep_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _keep_memory():
    """Reuse freed memory for the next subject, because requesting large blocks from the kernel is slow.

    This works with glibc; elsewhere it has no effect.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
