"""Score the label map of one test subject, whether made by a network of step 4 or by a tool outside this suite."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.geometry import SliceGrid, voxel_ml
from evaluation.scores.lesions import with_lesions
from evaluation.scores.metrics import score_subject
from utils.config.evaluation import EvaluationSection


def score_label_map(
    subject: str,
    maps: tuple[np.ndarray, np.ndarray],
    grid: SliceGrid,
    labels: Sequence[str],
    settings: EvaluationSection,
    *,
    voxel_size_known: bool,
) -> list[dict[str, Any]]:
    """Return the rows of metrics.json for one subject.

    Args:
        subject: Identifier.
        maps: Prediction and reference as class indices, both `(X, Y, Z)` on the grid of the scan.
        grid: The grid of the scan.
        labels: Class names in the order of their indices 1, 2, ...
        settings: How predictions are scored.
        voxel_size_known: Whether the lengths of the grid are mm.
    """
    spacing = tuple(grid.spacing) if voxel_size_known else None
    how = spacing, labels, settings.surface_tolerance_mm, settings.regions, voxel_ml(grid.affine)
    how_lesions = labels, settings.regions, settings.lesions, settings.lesion_overlap
    return [{"subject": subject} | score for score in with_lesions(score_subject(*maps, *how), maps, *how_lesions)]
