"""Agreement of a predicted label map with the reference: Dice, HD95, surface Dice and volumes per class.

If a config has regions (unions of classes that may overlap, such as the whole tumour), they replace the classes.
Conventions, the same in every table and figure:

- a class absent from both reference and prediction has no Dice and no distance: NaN, counted by the tables, never
  dropped;
- a class absent from only one of the two scores Dice 0, surface Dice 0 and HD95 = the diagonal of the image;
- if the voxel size is unknown, values in mm and mL are None.
"""

import functools
import math

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from data.geometry import MM3_PER_ML
from evaluation.scores.measures import SEGMENTATION_MEASURES
from utils.checks import InputError

HD_PERCENTILE = 95
FEW = 15  # voxels per surface point; above this, a search tree is faster than a distance transform


def score_subject(prediction, reference, spacing_mm, labels, surface_tolerance_mm, regions=None, voxel_ml=None):
    """Score one subject, with one row per class, or per region if there are regions.

    Args:
        prediction: Predicted class index per voxel, `(X, Y, Z)` integer; 0 is background.
        reference: Reference class index per voxel, `(X, Y, Z)` integer, same grid.
        spacing_mm: Voxel size along the three axes in mm, or None if unknown.
        labels: Class names in the order of their indices 1, 2, ...
        surface_tolerance_mm: Distance up to which two surfaces count as equal in the surface Dice, mm.
        regions: Name -> names of the classes in the region; regions are scored instead of classes.
        voxel_ml: Volume of a voxel (`data.geometry.voxel_ml`); None: the product of the spacing (orthogonal axes).

    Returns:
        List of dicts in the order of the classes or regions, with the keys `label`, `dice`, `hd95_mm`,
        `surface_dice`, `volume_ml`, `volume_ml_reference` and, without a voxel size, `voxels_reference`; NaN and None
        as described in the docstring of this module.

    Raises:
        InputError: For different shapes, a class index without a name, or a region of unknown classes.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    _check_maps(prediction, reference, labels)
    shape, box = reference.shape, bounding_box((prediction > 0) | (reference > 0))
    prediction, reference = prediction[box], reference[box]  # all voxels outside are background in both masks
    rows = []
    for label, indices in scored_structures(labels, regions).items():
        predicted, true = np.isin(prediction, indices), np.isin(reference, indices)
        row = {"label": label, "dice": dice(predicted, true)}
        row |= {one.key: None for one in SEGMENTATION_MEASURES if one.needs_voxel_size and not one.difference_of}
        if spacing_mm is None:
            row["voxels_reference"] = int(true.sum())  # identifies the reference if there is no volume
        else:
            each = math.prod(spacing_mm) / MM3_PER_ML if voxel_ml is None else voxel_ml
            diagonal = math.hypot(*(n * mm for n, mm in zip(shape, spacing_mm, strict=True)))
            agreement = surface_agreement(predicted, true, spacing_mm, surface_tolerance_mm, diagonal)
            row["hd95_mm"], row["surface_dice"] = agreement
            row["volume_ml"] = int(predicted.sum()) * each
            row["volume_ml_reference"] = int(true.sum()) * each
        rows.append(row)
    return rows


def scored_structures(labels, regions=None):
    """Return what is scored: name -> class indices of every region, or of every class if there are no regions."""
    numbers = {label: index for index, label in enumerate(labels, start=1)}
    structures = regions or {label: [label] for label in labels}
    return {structure: [numbers[name] for name in names] for structure, names in structures.items()}


def dice(predicted, true):
    """Return the Dice coefficient 2 |A and B| / (|A| + |B|) of two boolean masks; NaN if both are empty."""
    voxels = int(predicted.sum()) + int(true.sum())
    return 2 * int((predicted & true).sum()) / voxels if voxels else math.nan


def surface_agreement(predicted, true, spacing_mm, tolerance_mm, diagonal_mm):
    """Compute the 95th percentile Hausdorff distance and surface Dice of two masks.

    Surfaces are marching-cubes elements weighted by their area, so that neither slice thickness nor the number of
    voxels on a flat face affects the percentile. HD95 is the larger of the two directed percentiles.

    Args:
        predicted: Boolean mask, `(X, Y, Z)`.
        true: Boolean mask, `(X, Y, Z)`.
        spacing_mm: Voxel size along the three axes, mm.
        tolerance_mm: Largest distance at which two surfaces count as equal, mm.
        diagonal_mm: Diagonal of the image, mm, which may extend beyond the masks.

    Returns:
        `(hd95_mm, surface_dice)`; `(nan, nan)` if both masks are empty, `(image diagonal, 0.0)` if one is.

    Reference:
        Nikolov et al., J. Med. Internet Res. 2021 (surface Dice), by their package `surface-distance`; its HD95 is
        area-weighted. Surfaces and distances equal those of its `compute_surface_distances`, which computes the
        distances of all voxels of the box.
    """
    if not predicted.any() and not true.any():
        return math.nan, math.nan
    if not predicted.any() or not true.any():
        return diagonal_mm, 0.0
    # Deferred, because training processes never need it.
    import surface_distance

    spacing_mm = tuple(map(float, spacing_mm))
    box = bounding_box(predicted | true)
    surfaces = [_surface(mask[box], spacing_mm) for mask in (true, predicted)]
    distances = {}
    for (here, areas), (there, _), pair in zip(surfaces, surfaces[::-1], ("gt_to_pred", "pred_to_gt"), strict=True):
        away = _distances(here, there, spacing_mm)
        order = np.lexsort((areas, away))
        distances |= {f"distances_{pair}": away[order], f"surfel_areas_{pair.split('_')[0]}": areas[order]}
    hd95 = surface_distance.compute_robust_hausdorff(distances, HD_PERCENTILE)
    return float(hd95), float(surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm))


def _surface(mask, spacing_mm):
    """Return the voxel corners on the surface of a mask, `(X + 1, Y + 1, Z + 1)`, and the area at each, mm2."""
    from surface_distance.lookup_tables import ENCODE_NEIGHBOURHOOD_3D_KERNEL

    padded = np.zeros([length + 1 for length in mask.shape], np.uint8)
    padded[:-1, :-1, :-1] = mask
    codes = ndimage.correlate(padded, ENCODE_NEIGHBOURHOOD_3D_KERNEL, mode="constant")
    is_surface = (codes != 0) & (codes != 255)  # some but not all of the eight voxels around a corner are inside
    return is_surface, _areas(spacing_mm)[codes[is_surface]]


@functools.lru_cache(maxsize=8)
def _areas(spacing_mm):
    """Return the area of the surface for each of the 256 ways in which eight voxels can be inside or outside, mm2."""
    from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

    return create_table_neighbour_code_to_surface_area(spacing_mm)


def _distances(here, there, spacing_mm):
    """Return the distance from each point of one boolean image to the nearest of another, mm, in order of voxels.

    The time of a distance transform grows with the box, which a single distant false positive can make huge; that of a
    search tree grows with the number of points, which is large for a noisy prediction.
    """
    points = np.argwhere(here)
    if here.size > FEW * (len(points) + np.count_nonzero(there)):
        others = np.argwhere(there)
        # The tree finds the nearest point; offsets are whole voxels first, then mm, as in the transform.
        nearest = others[KDTree(others * spacing_mm).query(points * spacing_mm)[1]]
    else:
        transform = ndimage.distance_transform_edt(~there, spacing_mm, return_distances=False, return_indices=True)
        nearest = transform[:, here].T
    return np.sqrt((((nearest - points) * spacing_mm) ** 2).sum(axis=1))


def bounding_box(mask):
    """Return the index ranges of the smallest box that contains a mask; empty ranges for an empty mask."""
    occupied = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(where[0], where[-1] + 1) if where.size else slice(0) for where in occupied)


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
