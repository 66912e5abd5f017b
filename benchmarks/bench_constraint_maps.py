"""Time step 1 on simulated scans of BraTS size against the authors' recipe, and compare the maps with a plain path.

    PYTHONPATH=. python benchmarks/bench_constraint_maps.py [--brains N] [--rounds R] [--compared M] [--output FILE]

The subjects are skull-stripped simulated brains with a tumour, four contrasts of 240 x 240 x 155 voxels of 1 mm in
gzipped 16-bit NIfTI, exact zeros outside; each brain comes in four mirror images. Two sides take turns, step 1 on all
of them and the authors' recipe on one image of each brain, in processes of their own, start of Python included:

- step 1 as users run it, `generate_constraint_maps.py --jobs 2`: checking, reading, maps, pictures, writing;
- the authors' recipe in float64 in a single process, of one thread like each process of step 1: `get_fdata`,
  stretching, PCA, total variation (weight 40), MiniBatchKMeans (20), writing, over the full field of view (their script
  crops slices to 160 x 160 by default). PCA by a full decomposition and mini-batches of equal draws are what
  scikit-learn did when the recipe was published; 1.5 made the former faster, and since 1.7 each mini-batch takes a pass
  over the weights of all voxels, minutes per subject, which says nothing about the recipe. What that adds is estimated
  from the time of a draw, and the ratio with it given beside the goal.

Agreement is measured inside the foreground, because the authors' recipe spends classes on air, against the recipe in
plain form: float64, all voxels, no crop, no sample, Lloyd's algorithm to convergence. k-means has many local optima, so
that two plain runs of other seeds agree little; the goals therefore compare each map of step 1 with the plain path
started from the classes of that map, which leaves what float32, the crop and the sample change. Inertia is that of both
partitions in the plain path's components, and its goal is for the worst subject; the goal of the adjusted Rand index is
for the median, because on some subjects Lloyd's algorithm goes on for dozens of rounds along a flat valley, and then
relabels more than a tenth of the voxels for less than one percent of inertia. The lowest index is printed too, and the
index before the first round, which is what float32 and the crop change by themselves.

Floor: each byte of the scans is decompressed once and the map written; printed beside the seconds of each part. Goals:
4 times faster, inertia within 2 %, adjusted Rand index 0.9, 2 GB. Takes about ten minutes on two cores.
"""

import argparse
import csv
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from benchmarks.common import finish, parser_of
from benchmarks.plain_constraint_maps import (
    CLUSTERS,
    authors_recipe,
    class_means,
    inertia,
    plain_components,
    weighted_draw_s,
)
from utils.parallel import in_order

ROOT = Path(__file__).resolve().parents[1]
SHAPE, CONTRASTS = (240, 240, 155), ("t1", "t1gd", "t2", "flair")
DRAWN = (160, 192, 156)  # voxels of 1 mm in the simulator's field of view, which is padded to SHAPE
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS, as BraTS
IMAGES, JOBS = 4, 2


def main(arguments=None):
    parser = parser_of(__doc__, "constraint_maps")
    parser.add_argument("--brains", type=int, default=4, metavar="N", help="simulated brains (4)")
    parser.add_argument("--rounds", type=int, default=2, metavar="R", help="turns that each side takes (2)")
    parser.add_argument("--compared", type=int, default=4, metavar="M", help="brains whose maps are compared (4)")
    parser.add_argument("--authors", nargs="+", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.authors:
        print(json.dumps(authors_side(*options.authors[:2], map(str, options.authors[2:]))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.brains, options.rounds, options.compared)
    print(table(figures))
    inertias, indices = ([one[key] for one in figures["agreement"].values()] for key in ("inertia_ratio", "rand_index"))
    goals = {
        "times faster than the authors' recipe": (figures["speedup"], "at least", 4.0),
        "inertia over the plain path's, worst subject": (max(inertias), "at most", 1.02),
        "adjusted Rand index against the plain path, median": (statistics.median(indices), "at least", 0.9),
        "largest process of step 1, GB": (figures["step_1"]["peak_gb"], "at most", 2.0),
    }
    subjects = {"step_1_subjects": IMAGES * options.brains, "authors_subjects": options.brains}
    sizes = {"shape": SHAPE, "contrasts": len(CONTRASTS), **subjects, "rounds": options.rounds, "jobs": JOBS}
    return finish(options.output, sizes=sizes, figures=figures, goals=goals)


def measure(folder, brains, rounds, compared):
    """Simulate subjects, let the two sides take turns, compare maps; return all figures."""
    scans = folder / "scans"
    for _ in in_order(functools.partial(simulate, scans), range(brains), JOBS):
        pass
    config, originals = write_config(folder), [subject_of(brain) for brain in range(brains)]
    turns = {"step_1": [], "authors": []}
    for turn in range(rounds):
        turns["step_1"].append(time_step_1(config, folder / f"step_1_{turn}", IMAGES * brains))
        turns["authors"].append(time_authors(scans, folder / "authors", originals))
    figures = {side: median_of(found) for side, found in turns.items()}
    own, others = (figures[side]["wall_per_subject_s"] for side in turns)
    draws = figures["authors"]["mini_batches"] * weighted_draw_s(int(np.prod(SHAPE)))
    figures |= {
        "speedup": others / own,
        "weighted_draws_s": draws,
        "speedup_with_weighted_draws": (others + draws) / own,
    }
    figures["floor"] = floor_of(scans / originals[0], folder / "step_1_0" / "constraint_maps")
    figures["agreement"] = {subject: agreement(scans, folder, subject) for subject in originals[:compared]}
    return figures


def subject_of(brain, image=0):
    return f"brain-{brain:02d}-{image}"


def simulate(folder, brain):
    """Write the mirror images of one simulated brain; outside of it all voxels are 0."""
    import nibabel

    from data.simulation.subjects import simulate_subject
    from data.simulation.tissues import TISSUE_INDEX

    simulated = simulate_subject("brain_tumour", f"brain-{brain}", 1, DRAWN)
    inside = simulated.truth["true_tissue"] != TISSUE_INDEX["air"]
    frame = [((whole - part) // 2,) * 2 if whole > part else (0, 0) for whole, part in zip(SHAPE, DRAWN, strict=True)]
    for name, voxels in simulated.contrasts.items():
        voxels = np.pad(np.where(inside, voxels, 0).astype(np.int16), frame)[::-1, ::-1, : SHAPE[2]]
        for image in range(IMAGES):
            path = folder / subject_of(brain, image) / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            mirrored = voxels[:: (1, -1)[image % 2], :: (1, -1)[image // 2]]
            nibabel.save(nibabel.Nifti1Image(mirrored, AFFINE), path)


def write_config(folder):
    """Write a config for the scans of a folder; return its path."""
    patterns = {name: f"{{subject}}/{name}.nii.gz" for name in CONTRASTS}
    data = {"root": str(folder / "scans"), "contrasts": patterns, "splits": {"folds": 2, "validation": 1}}
    content = {"name": "bench", "work_dir": "unused", "data": data, "constraint_maps": {"contrasts": list(CONTRASTS)}}
    path = folder / "bench.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def time_step_1(config, work_dir, subjects):
    """Run step 1 on all subjects; return seconds per subject, of the whole script and of each part."""
    command = ["generate_constraint_maps.py", "--config", config, "--work-dir", work_dir, "--jobs", str(JOBS)]
    _, figures = run(command, subjects)
    with open(work_dir / "constraint_maps" / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith("seconds_")]
    parts = {name.removeprefix("seconds_"): statistics.median(float(row[name]) for row in rows) for name in names}
    return figures | {"parts_s": parts}


def time_authors(scans, out, subjects):
    """Run the authors' recipe on some subjects; return what `time_step_1` does, and the mini-batches of k-means."""
    command = ["benchmarks/bench_constraint_maps.py", "--authors", scans, out, *subjects]
    printed, figures = run(command, len(subjects))
    rows = json.loads(printed.splitlines()[-1])
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return figures | {"mini_batches": medians.pop("mini_batches"), "parts_s": medians}


def run(command, subjects):
    """Run a script of the suite; return what it prints, its seconds per subject and the peak of its processes."""
    surroundings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=surroundings, stdout=subprocess.PIPE)
    printed = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)  # its own descendants included, and none of the other side's
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]}: exit code {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    figures = {"wall_per_subject_s": wall / subjects, "cpu_per_subject_s": cpu / subjects}
    return printed, figures | {"peak_gb": usage.ru_maxrss / 1e6}  # kB on Linux


def median_of(turns):
    """Return the medians of the figures of several turns, the largest for the peak."""
    parts = {name: statistics.median(turn["parts_s"][name] for turn in turns) for name in turns[0]["parts_s"]}
    merged = {key: statistics.median(turn[key] for turn in turns) for key in turns[0] if key != "parts_s"}
    return merged | {"peak_gb": max(turn["peak_gb"] for turn in turns), "parts_s": parts}


def authors_side(scans, out, subjects):
    """Make maps by the authors' recipe; return seconds of each part and number of mini-batches, a dict per subject."""
    import nibabel

    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for subject in subjects:
        classes, seconds, batches = authors_recipe([scans / subject / f"{name}.nii.gz" for name in CONTRASTS])
        started = time.perf_counter()
        nibabel.save(nibabel.Nifti1Image(classes.astype(np.int16), AFFINE), out / f"{subject}.nii.gz")
        rows.append(seconds | {"writing": time.perf_counter() - started, "mini_batches": batches})
    return rows


def floor_of(scans, maps):
    """Return the bytes that must be read and written for a subject, and the seconds that unpacking them takes."""
    packed = [path.read_bytes() for path in sorted(scans.iterdir())]
    started = time.perf_counter()
    unpacked = sum(len(zlib.decompress(content, wbits=31)) for content in packed)
    seconds = time.perf_counter() - started
    written = (maps / f"{scans.name}.nii.gz").stat().st_size
    volumes = {"read_bytes": sum(map(len, packed)), "unpacked_bytes": unpacked, "written_bytes": written}
    return volumes | {"unpack_s": seconds}


def agreement(scans, folder, subject):
    """Compare the map that step 1 made of a subject with the plain path; see the file's docstring.

    Returns:
        `rand_index` and `inertia_ratio` against the plain path started from the map's classes, `rand_index_held` with
        the centres held; for comparison, of two plain runs of different seed with each other and with the map
        (`independent_*`), and what the authors' map does inside the foreground.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, pairwise_distances_argmin

    voxels, inside = plain_components(turned([scans / subject / f"{name}.nii.gz" for name in CONTRASTS]))
    maps = (folder / "step_1_0" / "constraint_maps", folder / "authors")
    ours, authors = (turned([path / f"{subject}.nii.gz"])[inside, 0].astype(int) for path in maps)
    centres = class_means(voxels, ours)
    same = KMeans(len(centres), init=centres, n_init=1).fit(voxels)
    plain = [KMeans(CLUSTERS, n_init=1, random_state=seed).fit(voxels) for seed in (0, 1)]
    best = min(run.inertia_ for run in plain)
    return {
        "rand_index": adjusted_rand_score(same.labels_, ours),
        "rand_index_held": adjusted_rand_score(pairwise_distances_argmin(voxels, centres), ours),
        "inertia_ratio": inertia(voxels, ours) / same.inertia_,
        "rounds": same.n_iter_,
        "independent_rand_index": adjusted_rand_score(plain[0].labels_, plain[1].labels_),
        "independent_rand_index_of_step_1": [adjusted_rand_score(run.labels_, ours) for run in plain],
        "independent_inertia_ratio": max(run.inertia_ for run in plain) / best,
        "independent_inertia_ratio_of_step_1": inertia(voxels, ours) / best,
        "authors_inertia_ratio": inertia(voxels, authors) / best,
        "authors_classes_inside": int((np.bincount(authors) >= len(authors) / 1000).sum()),
    }


def turned(paths):
    """Read images as `(rows, columns, slices, images)` float64, turned as step 1 turns them.

    scikit-image's solver stops early, and what it returns depends on the corner that it starts from.
    """
    import nibabel

    from data.geometry import axial_turns

    turn, _ = axial_turns(AFFINE)
    return turn(np.stack([nibabel.load(path).get_fdata() for path in paths], axis=-1))


def table(figures):
    """Return the figures as lines for the terminal."""
    lines = []
    for side, title in (("step_1", f"step 1, --jobs {JOBS}"), ("authors", "authors' recipe")):
        found = figures[side]
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in found["parts_s"].items())
        lines += [
            f"{title}: {found['wall_per_subject_s']:.2f} s per subject, {found['cpu_per_subject_s']:.2f} s of CPU, "
            f"largest process {found['peak_gb']:.2f} GB",
            f"  seconds of a subject's parts in one process: {parts}",
        ]
    lines.append(
        f"step 1 is {figures['speedup']:.2f} times faster; with scikit-learn's weighted draws it would be "
        f"{figures['speedup_with_weighted_draws']:.0f} times (estimated: {figures['weighted_draws_s']:.0f} s more)"
    )
    floor = figures["floor"]
    read, unpacked, written = (floor[f"{name}_bytes"] / 1e6 for name in ("read", "unpacked", "written"))
    lines.append(
        f"floor of a subject: {read:.1f} MB read, unpacked to {unpacked:.1f} MB in {floor['unpack_s']:.2f} s, "
        f"{written:.2f} MB written"
    )
    for subject, found in figures["agreement"].items():
        among = found["independent_rand_index"]
        against = " and ".join(f"{value:.2f}" for value in found["independent_rand_index_of_step_1"])
        lines += [
            f"{subject}: against the plain path from the same classes: adjusted Rand index {found['rand_index']:.3f} "
            f"after {found['rounds']} rounds ({found['rand_index_held']:.3f} before the first), inertia "
            f"{found['inertia_ratio']:.4f} of its",
            f"  plain path, two other seeds: adjusted Rand index {among:.2f} with each other, {against} with step 1; "
            f"inertia of the lower: the other {found['independent_inertia_ratio']:.3f}, step 1 "
            f"{found['independent_inertia_ratio_of_step_1']:.3f}, authors {found['authors_inertia_ratio']:.2f} "
            f"({found['authors_classes_inside']} classes there)",
        ]
    indices = [found["rand_index"] for found in figures["agreement"].values()]
    lines.append(f"adjusted Rand index after these rounds: lowest {min(indices):.3f}, highest {max(indices):.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
