"""How well a predicted label map agrees with the reference: Dice, HD95, surface Dice, volumes, per class.

Where a config has regions (unions of classes that may overlap, such as the whole tumour), they take the place of the
classes. Conventions, the same in every table and figure:

- a class absent in reference and prediction has no Dice and no distance: NaN, counted by the tables, never dropped;
- a class absent in one of the two scores Dice 0, surface Dice 0 and HD95 = the diagonal of the image;
- without a known voxel size nothing is said in mm or mL: those values are None.
"""

import math
import warnings

import numpy as np

from utils.checks import InputError

HD_PERCENTILE = 95
MM3_PER_ML = 1000.0


def score_subject(prediction, reference, spacing_mm, labels, surface_tolerance_mm, regions=None):
    """Score one subject, one row per class, or per region where there are regions.

    Args:
        prediction: Predicted class index per voxel, `(X, Y, Z)` integer; 0 is background.
        reference: Reference class index per voxel, `(X, Y, Z)` integer, same grid.
        spacing_mm: Voxel size along the three axes in mm, or None where it is not known.
        labels: Class names in the order of their indices 1, 2, ...
        surface_tolerance_mm: Two surfaces closer than this count as the same one in the surface Dice, mm.
        regions: Name -> names of the classes that the region unites; they are scored in place of the classes.

    Returns:
        List of dicts in the order of the classes or regions, with the keys `label`, `dice`, `hd95_mm`,
        `surface_dice`, `volume_ml`, `volume_ml_reference`; NaN and None as the module's docstring says.

    Raises:
        InputError: For different shapes, a class index without a name, or a region of unknown classes.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    _check_maps(prediction, reference, labels)
    rows = []
    for label, indices in scored_structures(labels, regions).items():
        predicted, true = np.isin(prediction, indices), np.isin(reference, indices)
        row = {"label": label, "dice": dice(predicted, true)}
        row |= dict.fromkeys(("hd95_mm", "surface_dice", "volume_ml", "volume_ml_reference"))
        if spacing_mm is not None:
            voxel_ml = math.prod(spacing_mm) / MM3_PER_ML
            row["hd95_mm"], row["surface_dice"] = surface_agreement(predicted, true, spacing_mm, surface_tolerance_mm)
            row["volume_ml"] = int(predicted.sum()) * voxel_ml
            row["volume_ml_reference"] = int(true.sum()) * voxel_ml
        rows.append(row)
    return rows


def scored_structures(labels, regions=None):
    """Say what is scored: name -> class indices, of every region, or without regions of every class."""
    numbers = {label: index for index, label in enumerate(labels, start=1)}
    structures = regions or {label: [label] for label in labels}
    return {structure: [numbers[name] for name in names] for structure, names in structures.items()}


def dice(predicted, true):
    """Dice coefficient 2 |A and B| / (|A| + |B|) of two boolean masks; NaN when both are empty."""
    voxels = int(predicted.sum()) + int(true.sum())
    return 2 * int((predicted & true).sum()) / voxels if voxels else math.nan


def surface_agreement(predicted, true, spacing_mm, tolerance_mm):
    """95th percentile Hausdorff distance and surface Dice of two masks.

    Surfaces are marching-cubes elements weighted by their area, so that neither slice thickness nor the number of
    voxels on a flat face biases the percentile. HD95 is the larger of the two directed percentiles.

    Args:
        predicted: Boolean mask, `(X, Y, Z)`.
        true: Boolean mask, `(X, Y, Z)`.
        spacing_mm: Voxel size along the three axes, mm.
        tolerance_mm: Largest distance at which two surfaces count as the same, mm.

    Returns:
        `(hd95_mm, surface_dice)`; `(nan, nan)` when both masks are empty, `(image diagonal, 0.0)` when one is.

    Reference:
        Nikolov et al., J. Med. Internet Res. 2021 (surface Dice), by their package `surface-distance`; its HD95 is
        area-weighted.
    """
    if not predicted.any() and not true.any():
        return math.nan, math.nan
    if not predicted.any() or not true.any():
        return math.hypot(*(n * mm for n, mm in zip(true.shape, spacing_mm, strict=True))), 0.0
    # Deferred: training processes that never score a surface do without it.
    import surface_distance

    with warnings.catch_warnings():
        # The package still addresses scipy.ndimage by its old submodule names; requirements.txt pins scipy below 2.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="surface_distance")
        distances = surface_distance.compute_surface_distances(true, predicted, tuple(map(float, spacing_mm)))
    hd95 = surface_distance.compute_robust_hausdorff(distances, HD_PERCENTILE)
    return float(hd95), float(surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm))


def _check_maps(prediction, reference, labels):
    if prediction.shape != reference.shape or prediction.ndim != 3:
        raise InputError(
            f"prediction is {prediction.shape} but the reference is {reference.shape}; "
            "both must be three-dimensional on one grid"
        )
    for name, values in (("prediction", prediction), ("reference", reference)):
        if not np.issubdtype(values.dtype, np.integer):
            raise InputError(f"{name}: {values.dtype} values, expected integer class indices")
        if values.size and not 0 <= values.min() <= values.max() <= len(labels):
            raise InputError(
                f"{name}: class indices from {values.min()} to {values.max()}, expected 0 to {len(labels)} "
                f"(background, {', '.join(labels)})"
            )
