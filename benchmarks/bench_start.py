"""Time each script until its first useful line: its help, and its answer to what the user must fix.

    PYTHONPATH=. python benchmarks/bench_start.py [--runs N] [--output FILE]

Every script is run with `--help`, with a config whose key is misspelt (it must suggest the right one), and with a
config that does not exist; those without a config, with options that are wrong. All cases take turns; a figure is
the median over the runs, with Python's byte code already on disk. Then each case runs once more to list its imports:
no backend may be among them. The limit is 0.5 seconds for the slowest. Floors are what no script can avoid: Python
that does nothing, and Python with the libraries that read and check a config. Writes benchmarks/output/start.json;
exit code 1 when a limit is broken. Takes about a minute.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import finish, parser_of

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "renal_demo.yaml"
BACKENDS = {"tensorflow", "jax", "torch", "keras"}
LIMIT_S = 0.5
FROM_ANYWHERE = {**os.environ, "PYTHONPATH": str(ROOT)}  # so that `python -m tools.NAME` is found
FLOORS = {"python": "pass", "python, yaml, pydantic": "import yaml, pydantic"}
# What the scripts without a config answer to instead, and how.
WITHOUT_CONFIG = {
    "tools.doctor": {},  # starts the backend, which is what it looks at
    "tools.export_model": {"model missing": (["--model", "missing", "--output", "b"], "missing")},
    "predict": {"model missing": (["--model", "missing", "--input", "a", "--output", "b"], "no model.json there")},
    "simulate_cohort": {"impossible number": (["--out", "new", "--subjects", "1"], "expected at least 3")},
}

# What else a script must be given before it reads its config.
BESIDE_CONFIG = {
    "tools.export_dataset": ("--format", "nnunet", "--output", "b"),
    "tools.score_predictions": (
        *("--name", "a", "--contrasts", "t1", "--subjects-n", "0", "--repeat", "0"),
        *("--predictions", "b"),
    ),
}


def main(arguments=None):
    parser = parser_of(__doc__, "start")
    parser.add_argument("--runs", type=int, default=7, metavar="N", help="timed runs of each case (default: 7)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        cases = all_cases(Path(folder))
        seconds = measure(cases, options.runs, folder)
        imports = {case: backends_imported(cases[case][0], folder) for case in cases if case not in FLOORS}
    medians = {case: statistics.median(values) for case, values in seconds.items()}
    slowest = max(imports, key=medians.get)
    print(table(medians, seconds, imports))
    importing = {case: sorted(found) for case, found in imports.items() if found}
    goals = {
        f"slowest: {slowest}, s": (medians[slowest], "at most", LIMIT_S),
        "cases that import a backend": (len(importing), "at most", 0),
    }
    sizes = {"runs": options.runs, "scripts": len(scripts()), "cases": len(imports)}
    figures = {"median_s": medians, "longest_s": {case: max(values) for case, values in seconds.items()}}
    return finish(options.output, sizes=sizes, figures={**figures, "backends_imported": importing}, goals=goals)


def scripts():
    """Return what stands for each script and each tool after `python`, by name."""
    found = {path.stem: [str(path)] for path in ROOT.glob("*.py") if "exit_code_of(main)" in path.read_text()}
    tools = [f"tools.{path.stem}" for path in (ROOT / "tools").glob("[a-z]*.py")]
    return dict(sorted({**found, **{tool: ["-m", tool] for tool in tools}}.items()))


def all_cases(folder):
    """Return, by name, the arguments of Python, the exit code and a text that the answer must have."""
    misspelt = folder / "misspelt.yaml"
    misspelt.write_text(CONFIG.read_text().replace("  clusters:", "  clustres:"))
    with_config = {
        "misspelt key": (["--config", str(misspelt)], "did you mean 'clusters'?"),
        "config missing": (["--config", "missing.yaml"], "no such config file"),
    }
    cases = {name: (["-c", code], 0, "") for name, code in FLOORS.items()}
    for script, words in scripts().items():
        cases[f"{script}: help"] = ([*words, "--help"], 0, "usage:")
        for mistake, (options, answer) in WITHOUT_CONFIG.get(script, with_config).items():
            cases[f"{script}: {mistake}"] = ([*words, *options, *BESIDE_CONFIG.get(script, ())], 2, answer)
    return cases


def measure(cases, runs, folder):
    """Return the seconds of each case, a list over the runs; the first round, which is not counted, checks answers."""
    seconds = {case: [] for case in cases}
    for counted in [False, *[True] * runs]:
        for case, (words, code, answer) in cases.items():
            start = time.perf_counter()
            ended = subprocess.run(
                [sys.executable, *words], cwd=folder, env=FROM_ANYWHERE, capture_output=True, text=True
            )
            seconds[case] += [time.perf_counter() - start] if counted else []
            if ended.returncode != code or answer not in ended.stdout + ended.stderr or "Traceback" in ended.stderr:
                said = f"exit code {ended.returncode}\n{ended.stdout[-500:]}{ended.stderr[-1500:]}"
                raise SystemExit(f"{case}: expected exit code {code} and '{answer}', got {said}")
    return seconds


def backends_imported(words, folder):
    """Return which backends a case has imported when it ends."""
    listing = subprocess.run(
        [sys.executable, "-X", "importtime", *words], cwd=folder, env=FROM_ANYWHERE, capture_output=True, text=True
    )
    return BACKENDS & {name.split(".")[0] for name in re.findall(r"\|\s+(\S+)$", listing.stderr, re.MULTILINE)}


def table(medians, seconds, imports):
    """Return the figures as lines for the terminal, slowest first."""
    lines = [f"{'':50}{'median':>9}{'longest':>9}  backends imported"]
    for case in sorted(medians, key=medians.get, reverse=True):
        found = ", ".join(sorted(imports[case])) or "none" if case in imports else "(floor)"
        lines.append(f"{case:50}{medians[case]:8.3f}s{max(seconds[case]):8.3f}s  {found}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
