"""Infrastructure of a run: run folder, seeds, log, progress, atomic files, exit codes."""

import atexit
import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import sys
import time
import traceback
from pathlib import Path

from utils.checks import InputError
from utils.disk import trouble_with_disk
from utils.environment import backend_name, device_name, environment, git_state, prepare_backend, started_as
from utils.interrupts import listen, stop_if_asked
from utils.texts import NotUtf8, read_text

log = logging.getLogger("mrccl")

TEMPORARY = ".tmp-"  # prefix of unfinished files
SECONDS_BETWEEN_LINES = 10.0  # of progress, without a terminal
CHECKPOINT = "checkpoint.npz"  # of an unfinished training run


def child_seed(seed, *names):
    """Derive the seed of one named consumer (split, anchors, a layer, an epoch) from the seed of the config.

    Args:
        seed: Integer seed of the config.
        *names: Strings or integers that name the consumer.

    Returns:
        An integer in [0, 2**32), independent of machine, Python version and order of calls.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary name beside `path`; rename it to `path` on success, delete it on any failure.

    The temporary name is hidden and keeps all suffixes, for writers that choose the format by suffix.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    pattern = rf"{re.escape(TEMPORARY)}(\d+)-{re.escape(path.name)}"
    unfinished = {name: re.fullmatch(pattern, name) for name in os.listdir(path.parent) if name.startswith(TEMPORARY)}
    remove_left_overs(path.with_name(name) for name, match in unfinished.items() if match and _has_ended(int(match[1])))
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _has_ended(process):
    with contextlib.suppress(PermissionError):  # owned by another user
        try:
            os.kill(process, 0)
        except (ProcessLookupError, OverflowError):
            return True
    return False


def remove_left_overs(found):
    """Remove the unfinished files and folders of a killed run, whose names begin with `TEMPORARY`."""
    for path in list(found):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def changed_since_step_2(subject, path):
    """Return one line on a file whose voxels have changed since they were packed."""
    return (
        f"{subject}: '{path}' changed since step 2 packed it, so that scores and training would have different "
        "references; restore it, or run generate_h5_pretraining.py --overwrite and the steps after it again"
    )


def lacks(path, subject):
    """Return one line on a subject that step 2 left out of a file."""
    return (
        f"{subject}: is not in {path}; run generate_h5_pretraining.py --overwrite once its files are sound, or give "
        "--keep-going to continue without it"
    )


def drop_checkpoint(folder):
    """Remove the checkpoint of a training run whose result has been written, or is to be recomputed."""
    (folder / CHECKPOINT).unlink(missing_ok=True)


def write_json(path, content):
    """Write JSON atomically; NaN is refused, because other languages cannot read it (use None)."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def json_number(value):
    """Return None for NaN and infinity, which JSON lacks; scores may be undefined or infinite."""
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def read_json(path, cure="delete it and run the step again"):
    """Read a JSON file; InputError that names it if it is missing, broken or has a repeated key."""
    try:
        return json.loads(read_text(path), object_pairs_hook=_each_key_once)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except NotUtf8 as error:
        raise InputError(f"{path}: not readable as JSON: {error}") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deeply nested brackets
        raise InputError(f"{path}: not readable as JSON ({error}); {cure}") from None


def _each_key_once(pairs):
    """Return the dictionary; for a repeated key, JSON would silently keep the last value."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key '{next(key for key in keys if keys.count(key) > 1)}' appears twice")
    return content


def progress(iterable, description, total=None):
    """Iterate with a progress bar on a terminal, or else with occasional log lines that give the time left."""
    total = len(iterable) if total is None and hasattr(iterable, "__len__") else total
    if sys.stderr.isatty():
        from rich.progress import track

        for item in track(iterable, description, total=total, console=_console()):
            yield item
            stop_if_asked()
        return
    started = shown = time.monotonic()
    for count, item in enumerate(iterable, start=1):
        yield item
        stop_if_asked()
        now = time.monotonic()
        if count == total or now - shown >= SECONDS_BETWEEN_LINES:
            shown, passed = now, now - started
            left = f", {time_left(passed / count * (total - count))}" if total and count < total else ""
            log.info("%s %d/%s (%.0f s%s)", description, count, total if total else "?", passed, left)


def time_left(seconds):
    """Return the remaining time as text, no more precise than it is certain."""
    if seconds < 90:
        return f"{max(1, round(seconds)):d} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"


def bar(description, total):
    """Return a function that advances a progress bar by one step and shows a note beside it.

    It is for loops inside other libraries, and does nothing without a terminal.
    """
    if not sys.stderr.isatty():
        return lambda note="": None
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    shown = Progress(*columns, TextColumn("{task.fields[note]}"), console=_console())
    number = shown.add_task(description, total=total, note="")
    shown.start()
    atexit.register(shown.stop)  # an interrupted run restores the terminal

    def advance(note=""):
        shown.update(number, advance=1, note=note)
        if shown.finished:
            shown.stop()

    return advance


def start_logging(level="INFO"):
    """Send the suite's messages to stderr, coloured on a terminal, otherwise as one plain line per event."""
    if log.handlers:
        return
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        handler = RichHandler(console=_console(), show_path=False, show_level=False, log_time_format="[%X]")
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False


@functools.cache  # messages and bars share one console, or they would overwrite each other
def _console():
    from rich.console import Console

    return Console(stderr=True)


def exit_code_of(main, arguments=None):
    """Run a script's `main` and return the documented exit code.

    Returns:
        0 if done, or what `main` returned (1: some subjects or cells failed under --keep-going); 2 if the user must fix
        something, with one line per mistake on stderr; 130 if interrupted by Ctrl-C or SIGTERM; 1 with a traceback for
        a bug in the suite.
    """
    listen()
    prepare_backend()
    start_logging()
    git_state()
    try:
        return main(arguments) or 0
    except InputError as error:
        for line in error.lines:
            print(line, file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print("interrupted; rerun the command to resume", file=sys.stderr)
        return 130
    except Exception as error:
        if reason := trouble_with_disk(error):
            print(reason, file=sys.stderr)
            return 2
        traceback.print_exc()  # reported in full: the last resort of a command-line program
        return 1


@contextlib.contextmanager
def open_run(folder, config, seed):
    """Record how a result is made, before the work starts.

    Writes `resolved_config.yaml`, `environment.json` and `command.txt` into `folder` and copies the log to `run.log`
    there. When the work is done, adds its duration and the backend and device, which are known only after use.

    Args:
        folder: Run folder, created if absent.
        config: Plain dictionary of the resolved config.
        seed: Seed of the config, recorded with the environment.

    Yields:
        The folder as a `Path`.

    Raises:
        InputError: Another run is active in this folder.
    """
    import yaml

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        with atomic_path(folder / "resolved_config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        with atomic_path(folder / "command.txt") as temporary:
            temporary.write_text(shlex.join([*started_as(), *sys.argv[1:]]) + "\n", encoding="utf-8")
        write_json(folder / "environment.json", record := environment() | {"seed": seed})
        handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
        started = time.monotonic()
        try:
            yield folder
            about = {"backend": backend_name(), "device": device_name()}
            write_json(
                folder / "environment.json", record | about | {"duration_s": round(time.monotonic() - started, 1)}
            )
        finally:
            log.removeHandler(handler)
            handler.close()


@contextlib.contextmanager
def alone_in(folder, option="--work-dir"):
    """Lock a folder until this run ends, however it ends, and remove what a killed run left behind.

    The lock is on the folder itself and ends with the process, so nothing has to be cleaned up by hand.

    Args:
        folder: Path of an existing folder.
        option: The option that sets the folder, for the message.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            cure = f"wait until it has ended, or give another {option}"
            raise InputError(f"{folder}: another run is active in this folder; {cure}") from None
        except OSError as error:  # some network file systems have no locks
            log.warning("%s: cannot be locked (%s); do not start a second run there", folder, error.strerror)
        remove_left_overs(folder.rglob(f"{TEMPORARY}*"))
        yield
    finally:
        os.close(handle)
