"""Time the cells of a finetuning grid that run in one process: the step of a shape is compiled once, by the first cell.

    PYTHONPATH=. python benchmarks/bench_grid.py [--subjects N] [--output FILE]

Simulates a small cohort, packs it (steps 1 and 2), and runs finetune_segmentation.py on a part of the grid of
configs/renal_table_simulated.yaml, from random weights: two contrasts (the slices on the device change), N = 2 and 4
(the number of slices of a cell changes), two repeats. Goals: cells after the first spend at most 5 % of what the first
one spends on compiling, and take less time. Writes benchmarks/output/grid_<backend>.json; exit code 1 when a goal is
missed. Takes two minutes.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import finish, parser_of

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/renal_table_simulated.yaml"
GRID = ("--contrasts", "dixon_in", "t1w", "--init", "random", "--subjects-n", "2", "4", "--repeats", "2")


def main(arguments=None):
    parser = parser_of(__doc__, "grid_<backend>")
    parser.add_argument("--subjects", type=int, default=24, metavar="N", help="simulated subjects (default: 24)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        cells = run_grid(Path(folder), options.subjects)
    import keras

    first, *later = cells
    compiling = max(cell["compile_s"] for cell in later)
    figures = {
        "cells": cells,
        "first_s": first["duration_s"],
        "later_median_s": statistics.median(cell["duration_s"] for cell in later),
        "first_compile_s": first["compile_s"],
        "later_compile_most_s": compiling,
    }
    print(table(cells))
    goals = {
        "compiling, cells 2 to n against cell 1": (compiling / first["compile_s"], "at most", 0.05),
        "duration, cells 2 to n against cell 1": (figures["later_median_s"] / first["duration_s"], "at most", 0.999),
    }
    output = Path(str(options.output).replace("<backend>", keras.backend.backend()))
    return finish(
        output, sizes={"config": CONFIG, "grid": GRID, "subjects": options.subjects}, figures=figures, goals=goals
    )


def run_grid(folder, subjects):
    """Make the data, run the grid; return name, duration and seconds of compiling of each cell, in their order."""
    scans = ["--out", folder / "scans", "--subjects", str(subjects), "--anatomy", "renal", "--seed", "3"]
    call("simulate_cohort.py", *scans, "--shape", "72", "60", "12", "--jobs", "2")
    settings = ["--config", CONFIG, "--work-dir", folder / "work", "--set", f"data.root={folder / 'scans'}"]
    call("generate_constraint_maps.py", *settings, "--jobs", "2")
    call("generate_h5_pretraining.py", *settings, "--jobs", "2")
    call("finetune_segmentation.py", *settings, *GRID)
    files = sorted((folder / "work").glob("finetuning/*/*/*/*/metrics.json"), key=lambda file: file.stat().st_mtime_ns)
    return [
        {"cell": str(file.parent.relative_to(folder / "work" / "finetuning"))}
        | {key: json.loads(file.read_text())[key] for key in ("duration_s", "compile_s")}
        for file in files
    ]


def call(script, *arguments):
    """Run a script of the suite; its own messages are shown when it fails."""
    ended = subprocess.run([sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{script}: exit code {ended.returncode}\n{ended.stderr[-2000:]}")


def table(cells):
    """Return the cells as lines for the terminal."""
    lines = [f"{'cell':<32}{'seconds':>9}{'compiling':>11}"]
    return "\n".join(lines + [f"{c['cell']:<32}{c['duration_s']:>9.1f}{c['compile_s']:>11.2f}" for c in cells])


if __name__ == "__main__":
    sys.exit(main())
