"""Lesion-wise scores: connected components of a label, matched between prediction and reference by their overlap.

Conventions, the same in every table and figure:

- a lesion is a component of voxels that touch by faces, edges or corners in three dimensions (26 neighbours);
- a predicted and a reference lesion can be paired if their intersection over union (IoU) is at least a threshold; each
  is in at most one pair, and pairs are formed in order of their IoU, largest first;
- a paired reference lesion is detected, an unpaired one missed; an unpaired predicted lesion is a false positive;
- with no lesion in either prediction or reference, F1 is undefined (NaN, counted by the tables, never dropped); with
  lesions in only one of the two, F1 is 0; without a lesion in the reference, sensitivity is undefined (NaN).
"""

import math
import typing

import numpy as np
from scipy import ndimage

from evaluation.scores.metrics import bounding_box, scored_structures

TOUCHING = np.ones((3, 3, 3), bool)  # 26 neighbours


class LesionCounts(typing.NamedTuple):
    """Lesion counts of one subject.

    Attributes:
        reference: Lesions in the reference.
        detected: Reference lesions that are paired with a predicted one.
        false_positive: Predicted lesions without a partner.
    """

    reference: int
    detected: int
    false_positive: int

    @property
    def sensitivity(self) -> float:
        """Share of the reference lesions that are detected; NaN where there are none."""
        return self.detected / self.reference if self.reference else math.nan

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN), the Dice coefficient of lesions instead of voxels; NaN without any lesion."""
        lesions = self.reference + self.detected + self.false_positive
        return 2 * self.detected / lesions if lesions else math.nan


def count_lesions(predicted, true, overlap) -> LesionCounts:
    """Count detected and false-positive lesions.

    Args:
        predicted: Boolean mask, `(X, Y, Z)`.
        true: Boolean mask, `(X, Y, Z)`.
        overlap: Smallest IoU of a pair, above 0.

    Returns:
        `LesionCounts`.

    Reference:
        Conventions of this module; the pairs are those of panoptica's `NaiveThresholdMatching` (Kofler et al., arXiv
        2312.02608) with this threshold. Equal overlaps are taken in the order of the voxels (ours).
    """
    reference, n_reference = ndimage.label(true, TOUCHING)
    found, n_found = ndimage.label(predicted, TOUCHING)
    sizes = [
        np.bincount(numbers.ravel(), minlength=n + 1) for numbers, n in ((reference, n_reference), (found, n_found))
    ]
    both = (reference > 0) & (found > 0)
    pairs, shared = np.unique(np.stack([reference[both], found[both]]), axis=1, return_counts=True)
    iou = shared / (sizes[0][pairs[0]] + sizes[1][pairs[1]] - shared)
    taken: tuple[set[int], set[int]] = set(), set()
    for place in np.lexsort((pairs[1], pairs[0], -iou)):
        one, other = map(int, pairs[:, place])
        if iou[place] >= overlap and one not in taken[0] and other not in taken[1]:
            taken[0].add(one)
            taken[1].add(other)
    detected = len(taken[0])
    return LesionCounts(n_reference, detected, n_found - detected)


def with_lesions(rows, maps, labels, regions, lesions, overlap):
    """Add the lesion-wise scores to the rows of the labels that are lesions.

    Args:
        rows: Rows of one subject, from `metrics.score_subject`.
        maps: Predicted and reference class index per voxel, `(X, Y, Z)` integer each.
        labels: Class names in the order of their indices 1, 2, ...
        regions: Name -> names of the classes in the region, or an empty dict; as for `score_subject`.
        lesions: Names of the labels, or regions, whose connected components are lesions.
        overlap: Smallest IoU of a predicted lesion and the reference lesion that it detects.

    Returns:
        List of dicts: the rows; those of lesions also have `lesions_reference`, `lesions_detected`,
        `lesions_false_positive`, `lesion_sensitivity` and `lesion_f1`.
    """
    structures = scored_structures(labels, regions)
    return [row | (_scores(maps, structures[row["label"]], overlap) if row["label"] in lesions else {}) for row in rows]


def _scores(maps, indices, overlap):
    masks = [np.isin(classes, indices) for classes in maps]
    box = bounding_box(masks[0] | masks[1])  # far smaller than the volume, and thus much faster
    counts = count_lesions(*(mask[box] for mask in masks), overlap)
    return {
        "lesions_reference": counts.reference,
        "lesions_detected": counts.detected,
        "lesions_false_positive": counts.false_positive,
        "lesion_sensitivity": counts.sensitivity,
        "lesion_f1": counts.f1,
    }
