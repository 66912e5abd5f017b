"""Effective values of a constrained stage on its data: for the log, the run record and warnings."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.runs import write_json

log = logging.getLogger("mrccl")
Numbers = Sequence[float] | np.ndarray
LARGEST_PATCH_MM = 10.0  # the authors' patches measure about 6 mm
LARGEST_NEAREST_SHARE = 0.25  # the authors' 100 patches are about 6 % of the foreground


def share_of(share, foreground):
    """Convert a share of foreground patches to whole numbers.

    Args:
        share: In (0, 1].
        foreground: Foreground patches of each image, `(n,)`.

    Returns:
        `(n,)` int32, at least 1; halves are rounded up.
    """
    return np.maximum(1, np.floor(share * np.asarray(foreground) + 0.5)).astype("int32")


@dataclass(frozen=True)
class PatchCounts:
    """Numbers of nearest patches and anchors of an image: absolute, or shares of its own foreground patches.

    Attributes:
        nearest: Nearest patches; None with a share.
        anchors: Anchors; None with a share.
        nearest_share: In (0, 1], or None.
        anchors_share: In (0, 1], or None.
    """

    nearest: int | None = None
    anchors: int | None = None
    nearest_share: float | None = None
    anchors_share: float | None = None

    def nearest_of(self, foreground: Numbers) -> np.ndarray:
        """Number of nearest patches of images with this many foreground patches, `(n,)` int32."""
        return self._of(self.nearest, self.nearest_share, foreground)

    def anchors_of(self, foreground: Numbers) -> np.ndarray:
        """Number of anchors of images with this many foreground patches, `(n,)` int32."""
        return self._of(self.anchors, self.anchors_share, foreground)

    def largest(self, most_foreground: int) -> dict[str, int]:
        """Return the largest numbers of nearest patches and anchors, given the most foreground patches of any image."""
        nearest, anchors = (of([most_foreground])[0] for of in (self.nearest_of, self.anchors_of))
        return {"nearest": int(nearest), "anchors": int(anchors)}

    def _of(self, number, share, foreground):
        return np.full(len(foreground), number, "int32") if share is None else share_of(share, foreground)


def effective_values(
    counts: PatchCounts, foreground: Numbers, patches: int, edge_px: int, pixel_mm: float | None
) -> dict[str, Any]:
    """Describe a stage by what its settings amount to on its training images.

    Args:
        counts: `PatchCounts`.
        foreground: Foreground patches of each training image, `(n,)`.
        patches: Patches of an image, P.
        edge_px: Edge of a patch in pixels of the image.
        pixel_mm: Edge of such a pixel in mm; None if unknown.

    Returns:
        A dictionary for JSON. Numbers of patches refer to the median image, shares to its foreground patches.
    """
    median = float(np.median(foreground)) if len(foreground) else 0.0
    nearest = int(np.minimum(counts.nearest_of([median]), patches - 1)[0])
    anchors = int(np.minimum(counts.anchors_of([median]), median)[0])
    return {
        "patch_px": edge_px,
        "patch_mm": None if pixel_mm is None else round(edge_px * pixel_mm, 4),
        "patches": patches,
        "median_foreground_patches": median,
        "nearest_patches": nearest,
        "nearest_share": round(nearest / median, 4) if median else None,
        "anchors": anchors,
        "anchors_share": round(anchors / median, 4) if median else None,
    }


def described(values):
    """Describe `effective_values` in one line."""
    mm = "" if values["patch_mm"] is None else f" ({values['patch_mm']:g} mm)"
    line = f"patches of {values['patch_px']} px{mm}, {values['median_foreground_patches']:g} of {values['patches']} in "
    line += "the foreground (median image)"
    for key, share in (("nearest_patches", "nearest_share"), ("anchors", "anchors_share")):
        of = "" if values[share] is None else f" ({values[share]:.1%} of the foreground)"
        line += f", {values[key]} {key.replace('_', ' ')}{of}"
    return line


def far_from_the_method(values):
    """Yield warnings for values far from those of the method, and what to do."""
    if (values["patch_mm"] or 0) > LARGEST_PATCH_MM:
        yield (
            f"a patch has an edge of {values['patch_mm']:g} mm, more than {LARGEST_PATCH_MM:g} (authors: about 6), and "
            "mixes tissues; lower patch_mm or patch_size, or build more decoder_levels"
        )
    if (values["nearest_share"] or 0) > LARGEST_NEAREST_SHARE:
        yield (
            f"{values['nearest_patches']} nearest patches are {values['nearest_share']:.0%} of the foreground patches "
            f"of the median image, more than {LARGEST_NEAREST_SHARE:.0%} (authors: about 6 %), so that an anchor is "
            "also compared with dissimilar patches; lower nearest_patches, or give nearest_share"
        )


def record_effective(
    counts: PatchCounts,
    foreground: np.ndarray,
    patches: int,
    edge_px: int,
    pixel_mm: float | None,
    folder: Path,
    name: str,
) -> None:
    """Write `effective.json` into the folder of a stage, log it, and warn of values far from those of the method.

    Arguments are those of `effective_values`, the folder, and the name of the stage for messages.
    """
    values = effective_values(counts, foreground, patches, edge_px, pixel_mm)
    write_json(folder / "effective.json", values)
    log.info("%s: %s", name, described(values))
    for complaint in far_from_the_method(values):
        log.warning("%s: %s", name, complaint)
