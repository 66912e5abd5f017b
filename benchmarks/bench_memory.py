"""Measure the peak memory of steps 1 and 2 with 20 and with 200 subjects: it must not grow with their number.

    PYTHONPATH=. python benchmarks/bench_memory.py [--subjects FEW MANY] [--folder DIR]

Simulates 20 brain tumour subjects of 64 x 64 x 24 voxels and four contrasts; the 200 are the same scans under ten names
each, apart from one voxel, so that the largest subject is the same in both. A label map kept of every subject would
show: 18 MB more, 7 %. generate_constraint_maps.py and generate_h5_pretraining.py run on both cohorts with --jobs 1 and
--jobs 2, each as a process of its own. The peak resident memory of the main process and of the largest worker is read
from /proc while they run; the JSON has that of the largest process by wait4 beside it. This process imports no numpy:
on Linux the peak that wait4 reports begins with the size of the parent.

Goals: the largest process of 200 subjects at most 5 % above that of 20, for each step and number of jobs. Floor: what
has to grow is one row of the summary and one line of JSON per subject, about 2 KB, so the ratio could be 1.00. The
JSON also has the growth per subject, seconds per subject (whole script, and without its start: what each further
subject adds) and bytes on disk per subject. Takes about six minutes and 1 GB of disk. Writes
benchmarks/output/memory.json; exit code 1 when a goal is missed.
"""

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import finish, parser_of

ROOT = Path(__file__).resolve().parents[1]
SHAPE, CONTRASTS = (64, 64, 24), ("t1", "t1gd", "t2", "flair")
LABELS = {"necrosis": [1], "oedema": [2], "enhancing": [3]}
STEPS = {"step_1": "generate_constraint_maps.py", "step_2": "generate_h5_pretraining.py"}
MADE = {"step_1": "constraint_maps", "step_2": "h5"}
BOUND = 1.05
VOX_OFFSET = slice(108, 112)  # bytes of the NIfTI header that tell where the voxels begin, as a float


def main(arguments=None):
    parser = parser_of(__doc__, "memory")
    parser.add_argument("--subjects", type=int, nargs=2, default=(20, 200), metavar=("FEW", "MANY"))
    parser.add_argument("--jobs", type=int, nargs="+", default=(1, 2), metavar="N", help="what --jobs is (1 2)")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    options = parser.parse_args(arguments)
    few, many = options.subjects
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench_memory_") as folder:
        folder = Path(folder)
        simulate(folder / "simulated", few)
        configs = {count: cohort(folder, few, count) for count in (few, many)}
        runs = {
            f"{step}_jobs_{jobs}": {count: run(step, configs[count], jobs) for count in (few, many)}
            for jobs in options.jobs
            for step in STEPS
        }
    figures = {name: compare(found, few, many) for name, found in runs.items()}
    print_table(figures, few, many)
    goals = {name.replace("_", " "): (found["largest_ratio"], "at most", BOUND) for name, found in figures.items()}
    sizes = {"shape": [*SHAPE, len(CONTRASTS)], "subjects": [few, many], "simulated": True}
    own = peak_mb("self")
    return finish(options.output, sizes=sizes, figures={**figures, "own_peak_mb": own}, goals=goals)


def simulate(folder, subjects):
    """Simulate the scans, which all cohorts share."""
    shape = [str(length) for length in SHAPE]
    command = ["simulate_cohort.py", "--out", folder, "--subjects", str(subjects), "--anatomy", "brain_tumour"]
    subprocess.run(
        [sys.executable, *command, "--shape", *shape, "--jobs", "2"], cwd=ROOT, check=True, stderr=subprocess.DEVNULL
    )


def cohort(folder, scans, count):
    """Write the scans under as many names as there are to be subjects, and the config; return its path."""
    root = folder / f"scans_{count}"
    for number in range(count):
        source, subject = folder / "simulated" / f"sub-{number % scans + 1:03d}", root / f"sub-{number:05d}"
        subject.mkdir(parents=True)
        os.link(source / "label.nii.gz", subject / "label.nii.gz")
        for name in CONTRASTS:
            copy_with_other_corner(source / f"{name}.nii.gz", subject / f"{name}.nii.gz", number)
    validation = test = max(1, count // 10)
    data = {
        "root": str(root),
        "contrasts": {name: f"{{subject}}/{name}.nii.gz" for name in CONTRASTS},
        "label": "{subject}/label.nii.gz",
        "labels": LABELS,
        "splits": {"train": count - validation - test, "val": validation, "test": test},
        "simulated": True,
    }
    content = {"name": "bench", "work_dir": str(folder / f"work_{count}"), "data": data}
    content |= {"constraint_maps": {"contrasts": list(CONTRASTS)}, "slices": {"image_size": SHAPE[:2]}}
    path = folder / f"bench_{count}.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def copy_with_other_corner(source, target, number):
    """Copy a NIfTI file with another value in its first voxel: one scan under two names would be refused."""
    content = bytearray(gzip.decompress(source.read_bytes()))
    (start,) = struct.unpack("<f", content[VOX_OFFSET])
    content[int(start) : int(start) + 2] = number.to_bytes(2, "little")
    target.write_bytes(gzip.compress(content, compresslevel=1))


def run(step, config, jobs):
    """Run a step on a cohort, all of it anew; return peaks in MB, seconds, and bytes of what it wrote."""
    made = Path(json.loads(config.read_text())["work_dir"]) / MADE[step]
    shutil.rmtree(made, ignore_errors=True)
    command = [sys.executable, STEPS[step], "--config", config, "--jobs", str(jobs)]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(command, cwd=ROOT, stderr=messages)
        peaks, usage = watch(process)
        if process.returncode:
            messages.seek(0)
            raise RuntimeError(f"{STEPS[step]} ended with {process.returncode}:\n{messages.read().decode()[-2000:]}")
    seconds = time.perf_counter() - started
    # With one job, the only child is git.
    workers = [peak for pid, peak in peaks.items() if pid != process.pid] if jobs > 1 else []
    return {
        "main_mb": peaks[process.pid],
        "worker_mb": max(workers, default=None),
        "largest_mb": max(peaks.values()),
        "largest_by_wait4_mb": usage.ru_maxrss / 1024,
        "wall_s": seconds,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "bytes": sum(path.stat().st_size for path in made.rglob("*") if path.is_file()),
    }


def watch(process):
    """Return the peak in MB of a process and of each of its children, `{pid: peak}`, and its resource usage."""
    peaks = {}
    while True:
        for pid in (process.pid, *children_of(process.pid)):
            peaks[pid] = max(peaks.get(pid, 0.0), peak_mb(pid))
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return peaks, usage
        time.sleep(0.05)


def children_of(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []


def peak_mb(pid):
    """Return the largest resident set that a process has had since its program began; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def compare(found, few, many):
    """Return both runs of a step, how memory grew from the small cohort to the large, and costs per subject."""
    small, large = found[few], found[many]
    figures = {f"of_{few}": small, f"of_{many}": large, "wall_per_subject_s": large["wall_s"] / many}
    for name in ("main", "worker", "largest"):
        if large[f"{name}_mb"] is not None:
            growth = large[f"{name}_mb"] - small[f"{name}_mb"]
            figures[f"{name}_ratio"] = large[f"{name}_mb"] / small[f"{name}_mb"]
            figures[f"{name}_growth_kb_per_subject"] = 1024 * growth / (many - few)
    figures["wall_per_further_subject_s"] = (large["wall_s"] - small["wall_s"]) / (many - few)
    figures["cpu_per_further_subject_s"] = (large["cpu_s"] - small["cpu_s"]) / (many - few)
    figures["disk_per_subject_bytes"] = large["bytes"] / many
    return figures


def print_table(figures, few, many):
    columns = [f"{name}, {count}" for name in ("main", "worker") for count in (few, many)]
    columns += ["KB/subject", "s/subject", "MB/subject"]
    print(f"{'peak MB':<16}" + "".join(f"{column:>14}" for column in columns))
    for name, found in figures.items():
        peaks = [found[f"of_{count}"][f"{who}_mb"] for who in ("main", "worker") for count in (few, many)]
        numbers = [*peaks, found["main_growth_kb_per_subject"], found["wall_per_further_subject_s"]]
        numbers.append(found["disk_per_subject_bytes"] / 1e6)
        cells = "".join(f"{'-' if number is None else f'{number:.2f}':>14}" for number in numbers)
        print(f"{name.replace('_', ' '):<16}{cells}")


if __name__ == "__main__":
    sys.exit(main())
