"""Ten deliberate faults, one at a time, in a copy of the suite: `make test` must catch each.

    python -m tests.mutations            all of them, a few minutes
    python -m tests.mutations --only "wrong sign in a loss"

Prints the first test that fails for each fault; exit code 1 if a fault goes unnoticed. Runs only the test files that
are likely to notice it, without long tests, so whatever is caught here is also caught by `make test`.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Fault(NamedTuple):
    """A fault: the only occurrence of `right` in `file` becomes `wrong`; `tests` should notice."""

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "wrong sign in a loss",
        "losses/constrained_contrastive.py",
        "cost = ops.softplus(negatives - logits)",
        "cost = ops.softplus(logits - negatives)",
        ("tests/losses/test_constrained_contrastive.py",),
    ),
    Fault(
        "left and right swapped on the way back",
        "data/geometry.py",
        "return orientations.ornt_transform(orientations.axcodes2ornt(SLICE_AXES), on_disk)",
        'return orientations.ornt_transform(orientations.axcodes2ornt(("P", "R", "S")), on_disk)',
        ("tests/data/test_geometry.py",),
    ),
    Fault(
        "a leak let through",
        "models/weights.py",
        "for subject in sorted(tested.keys() & self.seen):",
        "for subject in ():",
        ("tests/reliability/test_leaks.py",),
    ),
    Fault(
        "off by one in the crop",
        "data/geometry.py",
        "return (self.resampled_length - self.pixels) // 2",
        "return (self.resampled_length - self.pixels) // 2 + 1",
        ("tests/data/test_geometry.py",),
    ),
    Fault(
        "Dice of an absent class counted as 1",
        "evaluation/scores/metrics.py",
        "if voxels else math.nan",
        "if voxels else 1.0",
        ("tests/evaluation/scores/test_metrics.py",),
    ),
    Fault(
        "resuming without the state of the optimiser",
        "training/loop.py",
        "return [*self.task.network.weights, *self.task.optimizer.variables]",
        "return [*self.task.network.weights]",
        ("tests/training/test_training.py",),
    ),
    Fault(
        "names not escaped on the page",
        "evaluation/report/page.py",
        "autoescape=True",
        "autoescape=False",
        ("tests/evaluation/report/test_page.py", "tests/reliability/test_security.py"),
    ),
    Fault(
        "wrong order of classes in predict.py",
        "evaluation/prediction/new_scans.py",
        "classes, labels = most_probable(volumes), model.labels",
        "classes, labels = most_probable(list(volumes)[::-1]), model.labels",
        ("tests/test_predict_segmentation.py",),
    ),
    Fault(
        "a typing error in a config accepted",
        "utils/config/sections.py",
        'extra="forbid"',
        'extra="ignore"',
        ("tests/utils/config/test_load.py",),
    ),
    Fault(
        "a checkpoint left beside a finished cell",
        "training/grid.py",
        "            drop_checkpoint(folder)\n            share",
        "            share",
        ("tests/reliability/test_two_runs.py",),
    ),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="FAULT", choices=[fault.name for fault in FAULTS])
    chosen = parser.parse_args().only
    unnoticed = 0
    for fault in (fault for fault in FAULTS if not chosen or fault.name in chosen):
        caught_by = try_fault(fault)
        unnoticed += caught_by is None
        print(f"{fault.name}: {f'caught by {caught_by}' if caught_by else 'NOT NOTICED'}", flush=True)
    return 1 if unnoticed else 0


def try_fault(fault):
    """Run the tests on a copy of the suite with one fault; returns the first test that fails, or None."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "suite"
        left_out = shutil.ignore_patterns(".*", "__pycache__", "runs", "results", "shared")
        shutil.copytree(ROOT, copy, ignore=left_out)
        apply(fault, copy)
        # Not copied: configs name paths relative to the suite.
        for name in ("results", ".venv"):
            (copy / name).symlink_to(ROOT / name)
        command = [sys.executable, "-m", "pytest", "-x", "-m", "not long", "-p", "no:cacheprovider", *fault.tests]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        if done.returncode not in (0, 1) or (done.returncode == 1) != bool(failed):
            raise RuntimeError(f"{fault.name}: pytest ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return failed[1] if failed else None


def apply(fault, folder):
    """Make the fault in a copy of the suite."""
    path = folder / fault.file
    text = path.read_text()
    if text.count(fault.right) != 1:
        raise RuntimeError(
            f"{fault.name}: {fault.file} holds {fault.right!r} {text.count(fault.right)} times, not once"
        )
    path.write_text(text.replace(fault.right, fault.wrong))


if __name__ == "__main__":
    raise SystemExit(main())
