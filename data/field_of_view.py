"""How much of the tissue the slices show, and the voxel sizes that a network was trained on."""

import logging

from data.geometry import SliceGrid

log = logging.getLogger("mrccl")

WARN_FROM = 0.01  # share of the foreground outside the slices: up to 1 % is hands, an ear, noise at the edge
NAMES_SHOWN = 5


def note_of_outside(shares):
    """Report how much of the foreground of subjects lies outside their slices.

    Args:
        shares: Subject -> share of its foreground that no slice shows, from 0 to 1.

    Returns:
        One sentence; None if every subject is below `WARN_FROM`.
    """
    much = sorted(((share, name) for name, share in shares.items() if share >= WARN_FROM), reverse=True)
    if not much:
        return None
    shown = ", ".join(f"{name} {share:.1%}" for share, name in much[:NAMES_SHOWN])
    shown += ", ..." if len(much) > NAMES_SHOWN else ""
    return (
        f"in {len(much)} of {len(shares)} subjects, some of the foreground lies outside the slices ({shown}); slices "
        "are cut about the middle of the scan: enlarge slices.image_size, or pixel_size, unless nothing needed is lost"
    )


def field_of_training(grids, *, is_size_known, foreground_outside):
    """Describe the voxels that a network was trained on, for model.json.

    Args:
        grids: `SliceGrid`s of the subjects that it was trained on.
        is_size_known: False if the headers of the scans do not give the true voxel size, which is then left out.
        foreground_outside: Largest share of the foreground outside the slices among the packed subjects, or None.

    Returns:
        `{"pixel_mm": [smallest, largest] or None, "slice_mm": likewise, "foreground_outside": share or None}`; rows and
        columns of a slice both count as pixels.
    """
    grids = list(grids)
    pixels = [length for grid in grids for length in grid.pixel_spacing]
    slices = [grid.slice_spacing for grid in grids]
    known = is_size_known and grids
    ends = {
        name: [round(min(found), 4), round(max(found), 4)] if known else None
        for name, found in (("pixel_mm", pixels), ("slice_mm", slices))
    }
    return ends | {"foreground_outside": foreground_outside}


def share_outside(mask, affine, pixel_size, image_size):
    """Return the share of a mask `(X, Y, Z)` that slices cut about the centre do not show; see `SliceGrid`."""
    return SliceGrid(mask.shape, affine, pixel_size, image_size).share_outside(mask)
