"""Kill each step at seeded moments until it finishes, and compare with an undisturbed run; writes the outcome as JSON.

    python -m tests.reliability.kills FOLDER --kills 3 --seed 1 [--steps maps h5 ...] [--fresh]

Reads   FOLDER/tiny.yaml and FOLDER/data (tests/cohort.py), which are made if missing.
Writes  FOLDER/whole and FOLDER/killed, two work dirs that should be equal, and FOLDER/kills.json: for each step the
        seconds of the undisturbed run and each kill with its moment.

The duration of the undisturbed run is divided into as many equal parts as there are kills, and a moment is drawn in
each. If a command ends before its moment, its outputs are deleted and it starts again. Commands are forks of this
process, which has already loaded the libraries, and their training steps run uncompiled, so that kills hit epochs and
not the compiler; with --fresh, each is a new Python process that compiles.
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.cheaply import coarse_figures, steps_uncompiled
from tests.cohort import STEPS, of_several_epochs, words_of, write_cohort
from utils.runs import child_seed

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = (
    "tensorflow",
    "keras",
    "h5py",
    "nibabel",
    "sklearn.cluster",
    "skimage.restoration",
    "pandas",
    "scipy.stats",
)
LIBRARIES += ("matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf", "jinja2")
MOST_TRIES = 4  # per kill


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    config = options.folder / "tiny.yaml"
    if not config.exists():
        write_cohort(options.folder, **of_several_epochs())
    start = functools.partial(fresh if options.fresh else forked, options.folder / "said.txt")
    if not options.fresh:
        for name in LIBRARIES:
            importlib.import_module(name)
    found = {}
    with contextlib.ExitStack() as cheaply:
        if not options.fresh:
            cheaply.enter_context(steps_uncompiled())
            cheaply.enter_context(coarse_figures())
        for step in options.steps:
            found[step] = disturb(step, config, options, start)
            (options.folder / "kills.json").write_text(json.dumps(found, indent=1))
            print(step, found[step], flush=True)


def disturb(step, config, options, start):
    """Run a step undisturbed, then in another work dir with kills; returns its seconds and the moments of the kills."""
    script, outputs = STEPS[step]
    whole, killed = options.folder / "whole", options.folder / "killed"
    seconds, code = run(start, script, words_of(step, config, whole))
    if code != 0:
        raise SystemExit(f"{step}: exit code {code}, see {config.parent / 'said.txt'}")
    draw, moments, ended = np.random.default_rng(child_seed(options.seed, step)), [], 0
    lasts = seconds  # duration of a complete run, which varies with the load of the machine
    while len(moments) < options.kills:
        if ended > MOST_TRIES * options.kills:
            raise SystemExit(f"{step}: ends before it can be killed")
        moment = float(draw.uniform(len(moments), len(moments) + 1)) * lasts / options.kills
        began_anew = not (killed / outputs).exists()
        lasted, code = run(start, script, words_of(step, config, killed), moment)
        if code == -signal.SIGKILL:
            moments.append(round(moment, 3))
        elif code == 0:  # it was already further
            ended += 1
            lasts = min(lasts, lasted) if began_anew else lasts
            shutil.rmtree(killed / outputs)
        else:
            raise SystemExit(f"{step}: exit code {code} after {lasted:.1f} s and kills at {moments}")
    _, code = run(start, script, words_of(step, config, killed))
    return {"seconds": round(seconds, 3), "kills": moments, "began_anew": ended, "exit_code": code}


def run(start, script, words, moment=None):
    """Run a command and kill it at a moment if it is still running; returns its seconds and exit code."""
    began = time.monotonic()
    process = start(script, [str(word) for word in words])
    code = None
    while code is None:
        if moment is not None and time.monotonic() - began >= moment:
            process.kill()
            code = process.wait()
        else:
            time.sleep(0.002)
            code = process.poll()
    return time.monotonic() - began, code


def fresh(said, script, words):
    with open(said, "w") as file:
        return subprocess.Popen([sys.executable, f"{script}.py", *words], cwd=ROOT, stdout=file, stderr=file)


class forked:
    """A command in a fork of this process, with the needed part of the interface of `subprocess.Popen`."""

    def __init__(self, said, script, words):
        self.code, self.pid = None, os.fork()
        if self.pid:
            return
        try:
            with open(said, "w") as file:
                for stream in (1, 2):
                    os.dup2(file.fileno(), stream)
            command(script, words)
        finally:
            os._exit(70)

    def poll(self):
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self):
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)


def command(script, words):
    """Run the `main` of a script in this process, and end the process as the script would."""
    from training import loop as checkpoints
    from utils.runs import exit_code_of

    checkpoints.SECONDS_BETWEEN_CHECKPOINTS = 0.0
    sys.argv = [f"{script}.py", *words]
    code = exit_code_of(importlib.import_module(script).main, words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
