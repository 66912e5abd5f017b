"""Run a script on bad input and examine everything it did: exit code, messages, files."""

import ast
import contextlib
import importlib
import io
import logging
import re
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from utils.runs import exit_code_of

SECONDS = 60  # a script that has not refused bad input by then is hanging
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Outcome:
    """The outcome of a script: exit code, lines on stderr, lines of the log, lines on stdout."""

    code: int
    said: list[str]
    logged: list[str] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)


@contextlib.contextmanager
def at_most(seconds):
    """Raise TimeoutError in code that takes longer."""

    def stop(_signal, _frame):
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def run(script, *words, seconds=SECONDS):
    """Run the `main` of a script in this process, as from a shell; returns an `Outcome`."""
    log, handler, stderr, stdout = logging.getLogger("mrccl"), _Lines(), io.StringIO(), io.StringIO()
    before = log.handlers[:], log.level, log.propagate, sys.argv, signal.getsignal(signal.SIGTERM)
    log.handlers[:], log.propagate, sys.argv = [handler], False, [started_as(script), *map(str, words)]
    log.setLevel("INFO")
    try:
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(stdout), at_most(seconds):
            code = exit_code_of(importlib.import_module(script).main, sys.argv[1:])
    except SystemExit as stop:  # argparse
        code = stop.code
    finally:
        log.handlers[:], level, log.propagate, sys.argv, on_term = before
        log.setLevel(level)
        signal.signal(signal.SIGTERM, on_term)
    return Outcome(code, without_usage(stderr.getvalue()), handler.lines, stdout.getvalue().splitlines())


def started_as(script):
    """Return `sys.argv[0]` as Python sets it for a script; `python -m` gives the file of a tool."""
    return str(ROOT / f"{script.replace('.', '/')}.py") if script.startswith("tools.") else f"{script}.py"


def without_usage(text):
    """Return the lines of stderr without the usage that argparse prints before its message."""
    return [line for line in text.splitlines() if not line.startswith(("usage: ", "       "))]


def listing(folder):
    """Return everything below a folder, `{path: content}`, to compare before and after."""
    return {str(path): _state(path) for path in sorted(Path(folder).rglob("*"))}


def _state(path):
    state = path.lstat()
    return state.st_mode, state.st_size, state.st_mtime_ns if not path.is_dir() else None


def assert_lines(found, expected, **names):
    """Compare whole lines with the expected ones, in order; `<any>` matches the wording of a library."""
    expected = [line.format(**names) for line in expected]
    pairs = zip(found, expected, strict=False)
    wrong = [pair for pair in pairs if not re.fullmatch(re.escape(pair[1]).replace("<any>", ".+"), pair[0])]
    assert not wrong, "\n".join(["found, and below it what was expected:", *(line for pair in wrong for line in pair)])
    assert len(found) == len(expected), "\n".join(["found:", *found, "expected:", *expected])


def assert_refused(folder, script, words, expected, **names):
    """Run a script that must refuse: exit code 2, exactly these lines, and no change in the folder."""
    before = listing(folder)
    outcome = run(script, *words)
    assert_lines(outcome.said, expected, **names)
    assert outcome.code == 2
    assert listing(folder) == before


def messages_of(path):
    """Return the strings in a source file, without docstrings and with X for inserted values."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {
        id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, documented) and isinstance(n.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value
