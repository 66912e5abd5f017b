"""Measure time and memory of a training step of contrast synthesis, with and without rematerialisation.

    PYTHONPATH=. python benchmarks/bench_synthesis.py [--cases 3d 2d] [--steps N] [--output FILE]

Two contrasts to two contrasts by the full U-Net in float32, L1 loss, Adam: two crops of 96 x 96 x 96 voxels, and
sixteen slices of 128 x 128. Each case runs in a process of its own, so that its peak memory is nobody else's: the
resident set, with Python and the backend (`before`, up to 1 GB), and on a GPU also what was allocated there. The limit
is 10 GB for the step in three dimensions. Writes benchmarks/output/synthesis_<backend>.json; exit code 1 when the limit
is broken. Takes one to two minutes on two cores; JAX, whose convolutions are slower there, ten.
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import OUTPUT, finish

FILTERS = (16, 32, 64, 128, 128, 128)
CASES = {"3d": {"size": (96, 96, 96), "batch": 2, "limit_gb": 10.0}, "2d": {"size": (128, 128), "batch": 16}}
CONTRASTS, TARGETS = 2, 2
HEADER = f"{'':9}{'first step':>10}{'per step':>10}{'of CPUs':>10}{'before':>9}{'peak':>9}{'on GPU':>9}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="timed steps, after the first (default: 3)")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/output/synthesis_<backend>.json)")
    parser.add_argument("--only", choices=("plain", "remat"), help="measure in this process and print JSON")
    options = parser.parse_args(arguments)
    if options.only:
        print(json.dumps(measure(options.cases[0], options.only == "remat", options.steps)))
        return 0
    rows = []
    print(HEADER)
    for case, only in itertools.product(options.cases, ("plain", "remat")):
        rows.append(started(case, only, options.steps))
        print(line(rows[-1]), flush=True)
    import keras  # not before the cases, see `started`

    output = options.output or OUTPUT / f"synthesis_{keras.backend.backend()}.json"
    goals = {
        f"{row['case']}, {row['only']}, peak GB": (peak_of(row), "at most", limit)
        for row in rows
        if (limit := CASES[row["case"]].get("limit_gb"))
    }
    sizes = {"filters": FILTERS, "steps": options.steps, **CASES}
    return finish(output, sizes=sizes, figures={"rows": rows}, goals=goals)


def peak_of(row):
    """Memory of the device where there is one, else of the process, GB."""
    return row["device_peak_gb"] or row["peak_gb"]


def started(case, only, steps):
    """Measure one case in a fresh process; this one must stay small, for a child's peak counts from its parent's."""
    command = [sys.executable, __file__, "--cases", case, "--only", only, "--steps", str(steps)]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{case}, {only}: exit code {ended.returncode}\n{ended.stderr[-2000:]}")
    return {"case": case, "only": only, **json.loads(ended.stdout.splitlines()[-1])}


def measure(case, remat, steps):
    """Train on one batch; return seconds of the first step, wall and CPU seconds of a later one, and peaks in GB."""
    import keras
    import numpy as np

    from losses.synthesis import synthesis_loss
    from models.unet import build_unet
    from training.tasks import Synthesis

    size, images = CASES[case]["size"], CASES[case]["batch"]
    network = build_unet((*size, CONTRASTS), rank=len(size), filters=FILTERS, head="synthesis", outputs=TARGETS)
    task = Synthesis(network, synthesis_loss).sparing_memory(remat).ready(1e-3)
    generator = np.random.default_rng(0)
    channels = {"image": CONTRASTS, "target": TARGETS}
    batch = {
        name: keras.ops.convert_to_tensor(generator.random((images, *size, number), "float32"))
        for name, number in channels.items()
    }
    before, seconds, of_processors = resident_gb(), [], []
    for _ in range(1 + steps):
        start, busy = time.perf_counter(), time.process_time()
        loss = float(task.train_on_batch(batch))  # fetching waits for the device
        seconds.append(time.perf_counter() - start)
        of_processors.append(time.process_time() - busy)
    return {
        "first_step_s": seconds[0],
        "per_step_s": statistics.median(seconds[1:]),
        "cpu_per_step_s": statistics.median(of_processors[1:]),
        "before_gb": before,
        "peak_gb": resident_gb(),
        "device_peak_gb": device_peak_gb(),
        "loss": loss,
    }


def resident_gb():
    """Return the largest resident set that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB on Linux


def device_peak_gb():
    """Return the most memory that was allocated on the first GPU; None without one."""
    import keras

    from training.devices import has_accelerator

    backend = keras.backend.backend()
    if backend == "torch":  # for which Keras lists no devices
        import torch

        return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    if not has_accelerator():
        return None
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9
    import jax

    return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 1e9


def line(row):
    """Return the figures of one case for the terminal."""
    device = f"{row['device_peak_gb']:6.2f} GB" if row["device_peak_gb"] is not None else "-"
    seconds = "".join(f"{row[name]:9.2f}s" for name in ("first_step_s", "per_step_s", "cpu_per_step_s"))
    memory = f"{row['before_gb']:6.2f} GB{row['peak_gb']:6.2f} GB{device:>9}"
    return f"{row['case']} {row['only']:6}{seconds}{memory}"


if __name__ == "__main__":
    sys.exit(main())
