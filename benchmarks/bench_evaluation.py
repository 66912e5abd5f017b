"""Time the evaluation of one subject of BraTS size in three dimensions, from class probabilities to its scores.

    PYTHONPATH=. python benchmarks/bench_evaluation.py [--repeats N] [--output FILE]

A made-up label map of 240 x 240 x 155 voxels of 1 mm with necrosis, enhancing tumour and oedema, about 110 mL, and two
predictions: one whose outlines differ by a few mm, and the same with false positives in two opposite corners, which
make the box of the tumour the whole volume. Scored are the three regions of BraTS with Dice, HD95, surface Dice and
volumes. The parts of step 4's evaluation after the network: probabilities of slices of 160 x 160 become a label map
(`label_map`), which is written; the reference is read; `score_subject`.

`score_subject` is timed in turns against the plain path, the package `surface-distance` called on the masks of every
region, which crops to the box of both masks by itself and computes the distance of every voxel in it. Both must give
the same scores, digit by digit. Several subjects are then finished one after the other and, as step 4 does while the
network predicts the next ones, in threads. Floor: one pass over both label maps, timed by itself; the numbers of voxels
in the boxes and of points on the surfaces are given beside it. Goal: at most 2 s for either prediction. Takes about two
minutes.
"""

import math
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from benchmarks.common import finish, parser_of

SHAPE, IMAGE_SIZE = (240, 240, 155), (160, 160)
LABELS = ["necrosis", "oedema", "enhancing"]  # 1, 2, 3
REGIONS = {"whole": LABELS, "core": ["necrosis", "enhancing"], "enhancing": ["enhancing"]}
RADII_MM = {2: 29, 3: 19, 1: 12}  # mean radius up to which a class reaches, from the outermost inwards
SPACING_MM, TOLERANCE_MM = (1.0, 1.0, 1.0), 1.0
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def main(arguments=None):
    parser = parser_of(__doc__, "evaluation")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="turns that each side takes (5)")
    options = parser.parse_args(arguments)
    reference, prediction = label_maps()
    scattered = prediction.copy()
    scattered[2:4, 3:6, 1:3] = scattered[-5:-2, -4:-2, -3:-1] = 3
    figures = {"parts_s": time_parts(reference, prediction, options.repeats)}
    for name, predicted in (("outlines", prediction), ("scattered", scattered)):
        figures[name] = compare(predicted, reference, options.repeats)
        figures[name]["subject_s"] = sum(figures["parts_s"].values()) + figures[name]["scored_s"]
        figures[name] |= floor_of(predicted, reference)
    figures["threads"] = time_threads(reference, prediction, options.repeats)
    print(table(figures))
    found = [figures[name] for name in ("outlines", "scattered")]
    goals = {
        "seconds of one subject": (found[0]["subject_s"], "at most", 2.0),
        "seconds of one subject, false positives in the corners": (found[1]["subject_s"], "at most", 2.0),
        "largest difference to the plain path's scores": (max(one["difference"] for one in found), "at most", 0.0),
    }
    millilitres = {name: int((reference == index).sum()) / 1000 for index, name in enumerate(LABELS, start=1)}
    sizes = {"shape": SHAPE, "image_size": IMAGE_SIZE, "regions": len(REGIONS), "repeats": options.repeats}
    return finish(options.output, sizes=sizes | {"reference_ml": millilitres}, figures=figures, goals=goals)


def label_maps(seed=0):
    """Return reference and prediction `(X, Y, Z)` uint8: nested rough balls, and the same with other outlines."""
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.arange(length, dtype=np.float32) for length in SHAPE), indexing="ij", sparse=True)
    distance = np.sqrt(sum((axis - centre) ** 2 for axis, centre in zip(axes, (150, 110, 80), strict=True)))
    maps = []
    for amplitude_mm, length_mm in ((3.0, 6.0), (1.5, 3.0)):
        noise = gaussian_filter(generator.standard_normal(SHAPE, dtype=np.float32), length_mm)
        distance = distance + amplitude_mm / noise.std() * noise
        maps.append(np.zeros(SHAPE, np.uint8))
        for index, radius in RADII_MM.items():
            maps[-1][distance < radius] = index
    return maps


def time_parts(reference, prediction, repeats):
    """Return the median seconds of what comes before the scores."""
    from data.layouts.subjects import SubjectFiles
    from data.scans.grid import Grid
    from data.scans.subject import SubjectReader
    from data.scans.volumes import write_nifti
    from evaluation.prediction.inference import label_map
    from utils.config.data import Wanted

    grid, probabilities = probabilities_of(prediction)
    wanted = Wanted(Path(), {}, labels={name: [index] for index, name in enumerate(LABELS, start=1)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "label.nii.gz"
        write_nifti(path, reference, AFFINE)
        files = SubjectFiles("sub-1", {}, path, None)
        parts = {
            "label map from probabilities": lambda: label_map(probabilities, grid),
            "label map written": lambda: write_nifti(Path(folder) / "prediction.nii.gz", prediction, AFFINE),
            "reference read": lambda: SubjectReader(files, wanted, grid=Grid(None, SHAPE, AFFINE)).label(),
        }
        seconds = {name: statistics.median(timed(part)[0] for _ in range(repeats)) for name, part in parts.items()}
    return seconds


def probabilities_of(prediction):
    """Return the grid of a label map and the certain probabilities `(S, H, W, K)` that lead to it."""
    from data.geometry import SliceGrid

    grid = SliceGrid(prediction.shape, AFFINE, None, IMAGE_SIZE)
    return grid, np.eye(len(LABELS) + 1, dtype=np.float32)[grid.to_slices(prediction, order=0)]


def finisher(folder, reference):
    """Return what step 4 does with `(name, grid, probabilities)` of a subject, its network apart."""
    from data.layouts.subjects import SubjectFiles
    from data.scans.grid import Grid
    from data.scans.subject import SubjectReader
    from data.scans.volumes import write_nifti
    from evaluation.prediction.inference import label_map
    from evaluation.scores.metrics import score_subject
    from utils.config.data import Wanted

    path, labels = Path(folder) / "label.nii.gz", {name: [index] for index, name in enumerate(LABELS, start=1)}
    wanted, grid = Wanted(Path(), {}, labels=labels), Grid(None, reference.shape, AFFINE)
    write_nifti(path, reference, AFFINE)
    files = SubjectFiles("sub-1", {}, path, None)

    def finish(item):
        name, slices, probabilities = item
        prediction = label_map(probabilities, slices)
        write_nifti(Path(folder) / f"{name}.nii.gz", prediction, AFFINE)
        true = SubjectReader(files, wanted, grid=grid).label()
        return score_subject(prediction, true, SPACING_MM, LABELS, TOLERANCE_MM, REGIONS)

    return finish


def time_threads(reference, prediction, repeats, subjects=8):
    """Return the seconds a subject of finishing several one after the other and in threads; scores must be equal."""
    from utils.parallel import in_threads

    grid, probabilities = probabilities_of(prediction)
    items = [(f"sub-{number}", grid, probabilities) for number in range(subjects)]
    with tempfile.TemporaryDirectory() as folder:
        finish, seconds = finisher(folder, reference), {"in_turn": [], "in_threads": []}
        for _ in range(repeats):
            for name, way in (("in_turn", map), ("in_threads", in_threads)):
                duration, rows = timed(lambda way=way: list(way(finish, items)))
                seconds[name].append(duration / subjects)
                assert rows == [finish(items[0])] * subjects
    medians = {f"{name}_s": statistics.median(durations) for name, durations in seconds.items()}
    return medians | {"times_faster": medians["in_turn_s"] / medians["in_threads_s"], "subjects": subjects}


def compare(prediction, reference, repeats):
    """Score by the suite and by the plain path in turns; return median seconds, their ratio, the largest difference."""
    from evaluation.scores.metrics import score_subject

    arguments = (prediction, reference, SPACING_MM, LABELS, TOLERANCE_MM, REGIONS)
    sides, seconds, rows = {"scored": score_subject, "plain": plain_scores}, {"scored": [], "plain": []}, {}
    for _ in range(repeats):
        for name, function in sides.items():
            duration, rows[name] = timed(function, *arguments)
            seconds[name].append(duration)
    medians = {f"{name}_s": statistics.median(durations) for name, durations in seconds.items()}
    pairs = zip(rows["scored"], rows["plain"], strict=True)
    difference = max(abs(ours[key] - plain[key]) for ours, plain in pairs for key in plain if key != "label")
    return medians | {"times_faster": medians["plain_s"] / medians["scored_s"], "difference": difference}


def plain_scores(prediction, reference, spacing_mm, labels, tolerance_mm, regions):
    """Do what `score_subject` does, one region after the other on masks of the whole volume."""
    import surface_distance

    rows = []
    for name, parts in regions.items():
        predicted, true = (np.isin(volume, [labels.index(p) + 1 for p in parts]) for volume in (prediction, reference))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            distances = surface_distance.compute_surface_distances(true, predicted, spacing_mm)
        volumes = [int(mask.sum()) * (math.prod(spacing_mm) / 1000) for mask in (predicted, true)]
        rows.append(
            {
                "label": name,
                "dice": 2 * int((predicted & true).sum()) / (int(predicted.sum()) + int(true.sum())),
                "hd95_mm": float(surface_distance.compute_robust_hausdorff(distances, 95)),
                "surface_dice": float(surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm)),
                "volume_ml": volumes[0],
                "volume_ml_reference": volumes[1],
            }
        )
    return rows


def floor_of(prediction, reference):
    """Return the seconds of one pass over both label maps, and how many voxels and surface points the regions have."""
    from evaluation.scores.metrics import _surface, bounding_box

    passing = timed(lambda: (np.count_nonzero(prediction), np.count_nonzero(reference)))[0]
    voxels = points = 0
    for parts in REGIONS.values():
        masks = [np.isin(volume, [LABELS.index(p) + 1 for p in parts]) for volume in (prediction, reference)]
        box = bounding_box(masks[0] | masks[1])
        voxels += masks[0][box].size
        points += sum(int(_surface(mask[box], SPACING_MM)[0].sum()) for mask in masks)
    return {"pass_s": passing, "voxels_of_boxes": voxels, "surface_points": points}


def timed(function, *arguments):
    """Return the seconds that a function takes, and what it returns."""
    started = time.perf_counter()
    outcome = function(*arguments)
    return time.perf_counter() - started, outcome


def table(figures):
    """Return the figures as lines for the terminal."""
    lines = [", ".join(f"{name} {seconds:.2f} s" for name, seconds in figures["parts_s"].items())]
    for name in ("outlines", "scattered"):
        found = figures[name]
        lines.append(
            f"{name}: scored in {found['scored_s']:.2f} s, by the plain path in {found['plain_s']:.2f} s "
            f"({found['times_faster']:.1f} times); all parts {found['subject_s']:.2f} s; floor: label maps passed in "
            f"{found['pass_s']:.3f} s; {found['voxels_of_boxes'] / 1e6:.1f} million voxels in the boxes, "
            f"{found['surface_points']} surface points"
        )
    found = figures["threads"]
    lines.append(
        f"{found['subjects']} subjects: {found['in_turn_s']:.2f} s each in turn, {found['in_threads_s']:.2f} s in "
        f"threads ({found['times_faster']:.2f} times)"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
