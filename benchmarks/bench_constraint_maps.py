"""Time step 1 on generated scans of BraTS size, four contrasts of 160 x 160 x 155 voxels in gzipped NIfTI.

    PYTHONPATH=. python benchmarks/bench_constraint_maps.py [--subjects N] [--output FILE]

Runs generate_constraint_maps.py twice, one subject at a time and two at a time, and reports seconds per subject, part
by part, and the memory of the largest process. The targets are 8 seconds per subject on two cores, reading included,
and 2 GB. Writes benchmarks/output/constraint_maps.json; exit code 1 when a target is missed. Takes about a minute.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np

from utils.runs import environment, write_json

ROOT = Path(__file__).resolve().parents[1]
SHAPE, CONTRASTS = (160, 160, 155), ("t1", "t1gd", "t2", "flair")
TARGETS = {"seconds_per_subject": 8.0, "peak_gb": 2.0}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=4, metavar="N", help="generated subjects (default: 4)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output" / "constraint_maps.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        config = generate(Path(folder), options.subjects)
        runs = {f"jobs_{jobs}": measure(config, Path(folder) / f"jobs_{jobs}", jobs) for jobs in (1, 2)}
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # kB on Linux; the largest single process
    figures = {"seconds_per_subject": runs["jobs_1"]["parts"]["total"], "peak_gb": peak}
    report = {"shape": [*SHAPE, len(CONTRASTS)], "subjects": options.subjects, **figures, "targets": TARGETS, **runs}
    write_json(options.output, {**report, "load_average": os.getloadavg()[0], "environment": environment()})
    print(table(runs, peak))
    reached = ", ".join(f"{name} {figures[name]:.2f} of {target:g}" for name, target in TARGETS.items())
    print(f"against the targets: {reached}\nwritten to {options.output}")


def generate(folder, subjects):
    """Write subjects and a config; return the config's path."""
    for number in range(subjects):
        for name, image in zip(CONTRASTS, scan(np.random.default_rng(number)), strict=True):
            path = folder / "scans" / f"sub-{number:02d}" / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(image, np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    patterns = {name: f"{{subject}}/{name}.nii.gz" for name in CONTRASTS}
    data = {"root": str(folder / "scans"), "contrasts": patterns, "splits": {"folds": 2, "validation": 1}}
    content = {"name": "bench", "work_dir": "unused", "data": data, "constraint_maps": {"contrasts": list(CONTRASTS)}}
    path = folder / "bench.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def scan(rng):
    """Yield four contrasts of a skull-stripped head: smooth tissue, noise, exact zeros outside, 16-bit integers."""
    from scipy.ndimage import gaussian_filter, zoom

    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij", sparse=True)
    brain = (x / 0.8) ** 2 + (y / 0.95) ** 2 + (z / 0.9) ** 2 < 1
    coarse = [gaussian_filter(rng.random((40, 40, 39)), 1.5) for _ in range(2)]
    tissue = [zoom((c - c.min()) / np.ptp(c), np.divide(SHAPE, c.shape), order=1) for c in coarse]
    for _ in CONTRASTS:
        first, second = rng.uniform(-1, 1, 2)
        signal = 500 + 400 * (first * tissue[0] + second * tissue[1]) + rng.normal(0, 15, SHAPE)
        yield np.where(brain, signal.clip(1), 0).astype(np.int16)


def measure(config, work_dir, jobs):
    """Run step 1; return wall time, CPU time and the median seconds of each part."""
    command = [sys.executable, "generate_constraint_maps.py", "--config", config, "--work-dir", work_dir]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, "--jobs", str(jobs)], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(work_dir / "constraint_maps" / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith("seconds_")]
    parts = {name.removeprefix("seconds_"): statistics.median(float(row[name]) for row in rows) for name in names}
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "wall_s": wall,
        "wall_per_subject_s": wall / len(rows),
        "cpu_per_subject_s": cpu / len(rows),
        "parts": parts,
    }


def table(runs, peak):
    """Return the figures as text."""
    parts = list(runs["jobs_1"]["parts"])
    lines = [f"{'seconds per subject':<38}{'--jobs 1':>10}{'--jobs 2':>10}"]
    lines += [f"{part:<38}" + "".join(f"{run['parts'][part]:>10.2f}" for run in runs.values()) for part in parts]
    for name, label in (("wall", "whole script, start and check included"), ("cpu", "CPU time of the whole script")):
        lines.append(f"{label:<38}" + "".join(f"{run[f'{name}_per_subject_s']:>10.2f}" for run in runs.values()))
    return "\n".join([*lines, f"largest process: {peak:.2f} GB"])


if __name__ == "__main__":
    main()
