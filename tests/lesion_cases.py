"""Pairs of generated lesion masks, and panoptica's counts for them.

    python -m tests.lesion_cases > tests/golden/panoptica.json

panoptica 2.1.7 needs older versions of numpy, pandas and rich than the suite, so this runs in a separate environment
(`python -m venv panoptica && panoptica/bin/pip install panoptica==2.1.7`); the module needs only numpy and panoptica.
Shapes are drawn with whole numbers, so that all machines draw the same ones.
"""

import contextlib
import importlib.metadata
import io
import json
import sys

import numpy as np

PAIRS = 60
OVERLAPS = (0.1, 0.25, 0.5)
KINDS = ("moved", "moved", "moved", "crowded", "joined", "noise", "diagonal", "no prediction", "no reference", "empty")
SHAPES = ((30, 24, 16), (20, 20, 20), (40, 30, 1), (15, 31, 18))


def ellipsoid(shape, centre, radii):
    """Return the mask of the voxels inside an ellipsoid given by whole numbers."""
    scale = int(np.prod(np.square(radii)))
    parts = [(x - c) ** 2 * (scale // r**2) for x, c, r in zip(np.indices(shape), centre, radii, strict=True)]
    return sum(parts) <= scale


def draw_lesions(rng, shape, number):
    """Draw the centres and radii of some lesions, in voxels."""
    return [([int(rng.integers(n)) for n in shape], [int(r) for r in rng.integers(1, 6, 3)]) for _ in range(number)]


def mask_of(shape, lesions):
    mask = np.zeros(shape, bool)
    for centre, radii in lesions:
        mask |= ellipsoid(shape, centre, radii)
    return mask


def changed(rng, lesions, moves):
    """Return most of the lesions, slightly shifted and resized."""
    kept = [lesion for lesion in lesions if rng.integers(4)]
    return [
        ([c + int(step) for c, step in zip(centre, rng.integers(-moves, moves + 1, 3), strict=True)],
         [max(1, r + int(step)) for r, step in zip(radii, rng.integers(-1, 2, 3), strict=True)])
        for centre, radii in kept
    ]  # fmt: skip


def draw_pair(number):
    """Draw the predicted and reference mask of one case, boolean `(X, Y, Z)`; all kinds occur with all shapes."""
    rng = np.random.default_rng(number)
    kind, shape = KINDS[number % len(KINDS)], SHAPES[number % len(SHAPES)]
    lesions = draw_lesions(rng, shape, 12 if kind == "crowded" else int(rng.integers(1, 6)))
    reference = mask_of(shape, lesions)
    predicted = mask_of(shape, changed(rng, lesions, moves=1))
    predicted |= mask_of(shape, draw_lesions(rng, shape, int(rng.integers(3))))
    if kind == "joined":  # one predicted lesion covers several of the reference
        predicted |= (np.indices(shape)[0] == lesions[0][0][0]) & (np.indices(shape)[1] % 5 == 0)
    elif kind == "noise":
        reference, predicted = rng.integers(4, size=(2, *shape)) == 0
    elif kind == "diagonal":  # voxels that touch only at corners, or not at all
        reference = np.indices(shape).sum(axis=0) % 4 == 0
        reference &= np.indices(shape).max(axis=0) % 3 < 2
        predicted = reference & (rng.integers(3, size=shape) > 0)
    elif kind in ("no prediction", "empty"):
        predicted = np.zeros(shape, bool)
    if kind in ("no reference", "empty"):
        reference = np.zeros(shape, bool)
    return predicted, reference


def by_panoptica(predicted, reference, overlap):
    """Count with panoptica: reference lesions, detected ones, false positives, F1 (None if undefined)."""
    from panoptica import ConnectedComponentsInstanceApproximator, InputType, Metric, NaiveThresholdMatching
    from panoptica import Panoptica_Evaluator as Evaluator

    evaluator = Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(),
        instance_matcher=NaiveThresholdMatching(matching_metric=Metric.IOU, matching_threshold=overlap),
        instance_metrics=[Metric.IOU],
        global_metrics=[],
    )
    masks = (mask.astype(np.uint8) for mask in (predicted, reference))
    with contextlib.redirect_stdout(io.StringIO()):
        result = evaluator.evaluate(*masks, verbose=False)["ungrouped"]
    f1 = float(result.rq)
    return [int(result.n_ref_instances), int(result.tp), int(result.fp), f1 if np.isfinite(f1) else None]


def golden():
    """Return for every case its voxels, to detect changed cases, and panoptica's counts at each overlap."""
    cases = []
    for number in range(PAIRS):
        predicted, reference = draw_pair(number)
        counts = {str(overlap): by_panoptica(predicted, reference, overlap) for overlap in OVERLAPS}
        cases.append({"voxels": [int(predicted.sum()), int(reference.sum())], "counts": counts})
    return {"panoptica": importlib.metadata.version("panoptica"), "cases": cases}


if __name__ == "__main__":
    text = json.dumps(golden())
    sys.stdout.write(text.replace('{"voxels"', '\n {"voxels"') + "\n")
