"""Training throughput of TensorFlow, JAX and PyTorch: eager, compiled and by XLA, float32 and mixed, by batch size.

    PYTHONPATH=. python benchmarks/bench_backends.py [--batches N ...] [--backends NAME ...] [--output FILE]

The step is that of constrained contrast on 160 x 160 x 2 images with the partial decoder and 1 x 1 patches of
configs/papers/brats_medphys2024.yaml (`--decoder full`: 4 x 4 patches of the full one), forward, backward and Adam, on
a batch that is already on the device. Each backend, mode and precision runs in a process of its own, where one batch
size follows the other; slices per second are the batch by the median step. A case that would need more memory or time
than allowed is ended and stays in the table with the reason, and so does a backend that is not installed. On a GPU the
best case must reach 15,000 slices per second; there is no goal for a CPU. `--per-dispatch 16` lets a GPU do so many
steps without waiting for the host, as a training does; on a CPU, XLA's convolutions are several times slower in a loop.

Beside it stands the share of the floor: the time that the convolutions take at the rate of a large matrix product in
the same precision, or that passes over the feature maps take at the rate of one over a large array, whichever is
longer, by the time measured. Each process measures both rates; the best ones count. Writes
benchmarks/output/backends.json; takes about a quarter of an hour on two cores, `--batches 10 32 64 128 256` an hour.

PyTorch needs minutes to compile this step, and again at the second step, which finds gradients where the first found
none: give `--limit 1200` to see it.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import finish, parser_of
from benchmarks.steps import FILTERS, MODES
from utils.environment import device_name

GOAL, PRECISIONS = 15_000, ("float32", "mixed")
HEADER = f"{'':34}{'slices/s':>10}{'step':>10}{'first':>8}{'of floor':>10}{'memory':>9}"


def main(arguments=None):
    options = options_of(arguments)
    if options.only:
        return measure(*options.only, options)
    rows = []
    for backend in options.backends:
        for mode in [mode for mode in MODES[backend] if mode in options.modes]:
            for precision in options.precisions:
                rows += started(backend, mode, precision, options)
    measured = [row for row in rows if "slices_per_s" in row]
    add_floors(measured)
    rows.sort(key=lambda row: -row.get("slices_per_s", 0))
    print("\n".join([HEADER, *map(line, rows)]))
    on_gpu = [row["slices_per_s"] for row in measured if row["device"] != "cpu"]
    goals = {"best case on a GPU, slices/s": (max(on_gpu, default=None), "at least", GOAL)}
    sizes = {key: value for key, value in vars(options).items() if key not in ("output", "only")}
    finish_code = finish(options.output, sizes=sizes, figures={"rows": rows}, goals=goals)
    return finish_code if measured else 1


def options_of(arguments):
    parser = parser_of(__doc__, "backends")
    parser.add_argument("--size", nargs=2, type=int, default=[160, 160], metavar=("H", "W"), help="(160 160)")
    parser.add_argument("--contrasts", type=int, default=2, metavar="C", help="channels of the images (2)")
    parser.add_argument("--filters", nargs="+", type=int, default=list(FILTERS), metavar="N", help="by level")
    parser.add_argument("--decoder", choices=("partial", "full"), default="partial", help="and its patches (partial)")
    parser.add_argument("--batches", nargs="+", type=int, default=[10, 32], metavar="N", help="sizes (10 32)")
    parser.add_argument("--backends", nargs="+", choices=MODES, default=list(MODES), help="default: all")
    modes = sorted({mode for modes in MODES.values() for mode in modes})
    parser.add_argument("--modes", nargs="+", choices=modes, default=modes, help="default: all that a backend has")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="default: both")
    parser.add_argument("--per-dispatch", type=int, default=1, metavar="N", help="steps in a compiled call (1)")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="timed steps of a case (4 s)")
    parser.add_argument("--limit", type=float, default=90.0, metavar="S", help="end a case after this time (90 s)")
    parser.add_argument("--memory", type=float, metavar="GB", help="end a case beyond this (0.8 of what is free)")
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)  # measure in this process, a line of JSON per case
    return parser.parse_args(arguments)


def started(backend, mode, precision, options):
    """Measure one backend, mode and precision in a fresh process; return a row per batch size."""
    about = {"backend": backend, "mode": mode, "precision": precision}
    batches = sorted(options.batches)
    if importlib.util.find_spec(backend) is None:
        return [about | {"batch": batch, "skipped": "not installed"} for batch in batches]
    shape = {"size": options.size, "contrasts": [options.contrasts], "filters": options.filters, "batches": batches}
    words = [word for name, values in shape.items() for word in (f"--{name}", *map(str, values))]
    words += ["--decoder", options.decoder, "--seconds", str(options.seconds)]
    words += ["--per-dispatch", str(options.per_dispatch), "--only", backend, mode, precision]
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        # A session of its own, so that compilers which the backend has started end with it.
        command = [sys.executable, __file__, *words]
        child = subprocess.Popen(command, stdout=said, stderr=errors, env=environment, start_new_session=True)
        try:
            reason = watched(child, said, options)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        rows, errors_text = rows_of(said), errors.seek(0) or errors.read()
    if child.returncode and not reason:
        reason = f"exit code {child.returncode}: {(errors_text.strip().splitlines() or [''])[-1][:300]}"
    if len(rows) < len(batches):
        rows.append({"skipped": reason or "no figures came back"})
    rows += [{"skipped": "a smaller batch was"}] * (len(batches) - len(rows))
    rows = [about | {"batch": batch} | row for batch, row in zip(batches, rows, strict=True)]
    print("\n".join(map(line, rows)), flush=True)
    return rows


def add_floors(rows):
    """Add to each row the seconds below which its step cannot fall, by the best rates of its precision and device."""
    from benchmarks.steps import floor_s

    for row in rows:
        alike = [r for r in rows if (r["precision"], r["device"]) == (row["precision"], row["device"])]
        rates = {name: max(other[name] for other in alike) for name in ("operations_per_s", "bytes_per_s")}
        row["floor_s"] = floor_s(row["per_slice"], rates, row["batch"])


def watched(child, said, options):
    """Wait for a process; return None when it has ended, or why it must, when a case takes too much time or memory."""
    allowed = options.memory or 0.8 * available_gb()
    cases, since = 0, time.monotonic()
    while True:
        try:
            child.wait(0.2)
            return None
        except subprocess.TimeoutExpired:
            pass
        if len(rows_of(said)) > cases:
            cases, since = cases + 1, time.monotonic()
        reason = None
        if time.monotonic() - since > options.limit:
            reason = f"not done after {options.limit:g} s"
        elif resident_gb(child.pid) > allowed:
            reason = f"needs more than {allowed:.1f} GB"
        if reason:
            return reason


def rows_of(said):
    """Return the rows that a process has written so far; what the backend prints beside them is left out."""
    text = os.pread(said.fileno(), 2**20, 0).decode()  # not by seeking: the process writes at the same position
    return [json.loads(words) for words in text.split("\n")[:-1] if words.startswith('{"')]


def available_gb():
    """Return the memory that a new process can have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(text.split()[1]) for text in lines if text.startswith("MemAvailable")) / 1e6


def resident_gb(pid):
    """Return the resident set of a process; 0 once it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (OSError, IndexError):
        return 0.0


def measure(backend, mode, precision, options):
    """Measure every batch size in this process and print a line of JSON for each."""
    from benchmarks import steps
    from training.devices import use_precision

    rates = steps.rates_of_device("bfloat16" if precision == "mixed" else "float32")
    use_precision(precision == "mixed")
    for count in options.batches:
        shape = (*options.size, options.contrasts)
        task = steps.constrained_task(shape, filters=options.filters, decoder=options.decoder, **MODES[backend][mode])
        per_dispatch = 1 if mode == "eager" or backend == "torch" else options.per_dispatch
        batch = steps.repeated(steps.constrained_batch(task, count), per_dispatch)
        start = time.perf_counter()
        task.train_on_batch(batch)
        first = time.perf_counter() - start
        run = steps.make_step(task, batch)
        run(1)  # PyTorch compiles once more here
        once = steps.timed(run, 1)
        turns = max(1, min(20, round(options.seconds / max(once, 0.05))))
        seconds = [value / per_dispatch for value in steps.take_turns({"step": run}, turns)["step"]]
        step = statistics.median(seconds)
        work = steps.work_of(task.network, 2 if precision == "mixed" else 4)
        row = {"slices_per_s": count / step, "per_step_s": step, "shortest_s": min(seconds), "first_step_s": first}
        row |= {
            "per_slice": work,
            "turns": turns,
            "steps_per_dispatch": per_dispatch,
            "device": device_name(),
            "load_average": os.getloadavg()[0],
        }
        row |= {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, **rates}
        print(json.dumps(row), flush=True)
    return 0


def line(row):
    """Return one row of the table."""
    name = f"{row['backend']:11}{row['mode']:9}{row['precision']:8}{row['batch']:6}"
    if "skipped" in row:
        return f"{name}  skipped: {row['skipped']}"
    times = f"{row['slices_per_s']:10.4g}{row['per_step_s']:9.4f}s{row['first_step_s']:7.1f}s"
    share = f"{row['floor_s'] / row['per_step_s']:9.0%}" if "floor_s" in row else f"{'':9}"
    return f"{name}{times}{share}{row['peak_gb']:7.1f} GB"


if __name__ == "__main__":
    sys.exit(main())
