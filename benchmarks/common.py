"""What all benchmarks share: the JSON they write, the lines they end with, machine and memory."""

import argparse
import os
import platform
import resource
import sys
from pathlib import Path

from utils.environment import environment, prepare_backend
from utils.runs import write_json

prepare_backend()  # as the scripts do, before a benchmark imports Keras
OUTPUT = Path(__file__).parent / "output"


def parser_of(doc, name):
    """Return a parser with `--output`, whose default is `benchmarks/output/<name>.json`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT / f"{name}.json", help="JSON file (default: %(default)s)")
    return parser


def finish(output, *, sizes, figures, goals):
    """Write the JSON, print one line for each goal, and return the exit code: 1 when one is missed.

    Args:
        output: The file.
        sizes: What was measured on: shapes, counts, repetitions.
        figures: What was measured, seconds (`_s`), bytes (`_bytes`, `_gb`) and ratios.
        goals: `{what: (value, "at least" or "at most", bound)}`; a value of None could not be measured here.
    """
    rows, missed = {}, False
    for what, (value, relation, bound) in goals.items():
        value = None if value is None else float(value)
        reached = None if value is None else value >= bound if relation == "at least" else value <= bound
        missed |= reached is False
        rows[what] = {"value": value, "goal": f"{relation} {bound:g}", "reached": reached}
        verdict = {None: "not measured here", True: "reached", False: "MISSED"}[reached]
        print(f"{what}: {'-' if value is None else f'{value:.3g}'} ({relation} {bound:g}: {verdict})")
    command = " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    about = {"command": command, "machine": machine(), "environment": environment()}
    write_json(output, {"goals": rows, "sizes": sizes, "figures": figures, **about})
    print(f"written to {output}")
    return 1 if missed else 0


def machine():
    """Return processor, cores, memory and load of this machine."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": model,
        "logical_cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(pages / 1e9, 1),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def peak_gb(who=resource.RUSAGE_SELF):
    """Return the largest resident set that this process, or one of its children, has had."""
    return resource.getrusage(who).ru_maxrss / 1e6  # kB on Linux
