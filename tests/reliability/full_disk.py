"""Run every step on a file system that is read-only or full and then has space again; prints the outcome as JSON.

    unshare -rm python -m tests.reliability.full_disk FOLDER PACKED

Reads   PACKED/tiny.yaml and PACKED/data, a tiny cohort, and PACKED/work, made from it by undisturbed steps
        (`packed` in tests/conftest.py).
Makes   FOLDER/whole, a copy of that work dir with the other steps, and FOLDER/small, a file system in memory that only
        this process sees. In it, each step runs several times with too little space, so that it fails at different
        points, and then with enough.
Prints  one JSON object: for each step the failed attempts (bytes left, exit code, messages, unfinished files), the
        exit code with enough space, differences from the undisturbed run, and the outcome on a read-only disk.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from data.store.room import SLACK
from tests.bad_input.harness import run
from tests.cheaply import coarse_figures, steps_uncompiled
from tests.cohort import words_of
from tests.reliability.equal import differences

ROOM = 64 << 20
SHARES = (0.0, 0.4, 0.85)  # free space, as a share of what a step writes
STEPS = {
    "generate_constraint_maps": "constraint_maps",
    "generate_h5_pretraining": "h5",
    "constrained_contrastive_learning": "pretraining",
    "finetune_segmentation": "finetuning",
    "reproduce_tables": "report",
    "predict": "predicted",
}


def main():
    folder, packed = map(Path, sys.argv[1:])
    small, whole = folder / "small", folder / "whole"
    small.mkdir(parents=True)
    mount("-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", small)
    config = packed / "tiny.yaml"
    shutil.copytree(packed / "work", whole)
    found = {"devices": [os.stat(place).st_dev for place in (folder, small)]}
    with steps_uncompiled(), coarse_figures():
        for step, outputs in STEPS.items():
            found[step] = disturb(step, outputs, config, whole, small)
    print(json.dumps(found))


def disturb(step, outputs, config, whole, small):
    """Run a step with too little space and then with enough; returns the outcome."""
    if not (whole / outputs).exists():
        assert run(step, *words_of(step, config, whole)).code == 0
    needed = sum(path.stat().st_size for path in (whole / outputs).rglob("*") if path.is_file())
    mount("-o", "remount,ro", small)
    read_only = run(step, *words_of(step, config, small / "work"))
    mount("-o", "remount,rw", small)
    rooms = [int(share * needed) for share in SHARES]
    if outputs == "h5":  # reserves more than it writes
        rooms += [SLACK + room for room in rooms]
    tries = [try_with(room, step, words_of(step, config, small / "work"), small) for room in rooms]
    outcome = run(step, *words_of(step, config, small / "work"))
    return {
        "read_only": {"code": read_only.code, "said": read_only.said},
        "tries": tries,
        "code": outcome.code,
        "said": outcome.said,
        "differences": differences(whole, small / "work", outputs),
    }


def mount(*options):
    subprocess.run(["mount", *map(str, options)], check=True)


def try_with(room, step, line, small):
    """Run a step with this much space in the small file system, and free the rest afterwards."""
    ballast = small / "ballast"
    free = os.statvfs(small)
    with open(ballast, "wb") as file:
        file.write(b"\0" * max(0, free.f_bavail * free.f_frsize - room))
    outcome = run(step, *line)
    unfinished = [str(path) for path in small.rglob(".tmp*")]
    ballast.unlink()
    return {"room": room, "code": outcome.code, "said": outcome.said, "unfinished": unfinished}


if __name__ == "__main__":
    main()
