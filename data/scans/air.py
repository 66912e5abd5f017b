"""Whether the corners of a scan show air, as foreground segmentation assumes."""

import numpy as np

from data.geometry import axial_turns
from data.intensity import STEP, corners_of

RANGE = (0.5, 99.5)  # percentiles of a contrast taken as its darkest and brightest
# Shares of that range. In 40 scans of heads and abdomens, the corners lie below 0.05 and vary by less than 0.04.
BRIGHTEST_AIR, WIDEST_AIR = 0.2, 0.15


def notes_on_air(subject, volume, names, affine):
    """Report contrasts whose corners do not show air, so that their foreground would be wrong.

    Air is dark in magnitude images; in signed images it may be grey, but it is uniform.

    Args:
        subject: Identifier.
        volume: `(X, Y, Z, C)`, as read.
        names: C names.
        affine: `(4, 4)`, voxel to world.

    Returns:
        A list of one line, or an empty list.
    """
    turn, _ = axial_turns(affine)
    found = [
        f"{name} {values}"
        for name, part in zip(names, np.moveaxis(volume, -1, 0), strict=True)
        if (values := _not_air(turn(part)))
    ]
    if not found:
        return []
    cure = "where tissue reaches the edge of the field of view, no foreground is found without data.mask; give one"
    return [f"{subject}: the corners do not seem to show air ({'; '.join(found)}); {cure}"]


def _not_air(contrast):
    """Return the numbers that contradict air in the corners, or an empty string."""
    darkest, brightest = np.percentile(contrast.flat[::STEP], RANGE)
    quarter, middle, three_quarters = np.percentile(corners_of(contrast), (25, 50, 75))
    span = brightest - darkest
    if span <= 0:
        return ""
    is_bright = contrast.min() >= 0 and middle - darkest > BRIGHTEST_AIR * span
    if is_bright or three_quarters - quarter > WIDEST_AIR * span:
        return f"{middle:.3g}, half of them {quarter:.3g} to {three_quarters:.3g}, all {darkest:.3g} to {brightest:.3g}"
    return ""
