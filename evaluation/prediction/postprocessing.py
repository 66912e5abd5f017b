"""Clean-up of label maps: only large connected components of each class are kept."""

import math

import numpy as np
from scipy import ndimage

from data.geometry import voxel_ml

ROUNDING = 1e-6  # voxels: a component of exactly this volume is kept
CONNECTED = ndimage.generate_binary_structure(3, 3)  # voxels that share a face, an edge or a corner, as in nnU-Net


def keep_components(classes, numbers, *, largest=False, min_voxels=0):
    """Remove small connected components of some classes; what is removed becomes background.

    A component is a set of voxels of one class connected by faces, edges or corners. Classes are processed separately,
    so a core inside a tumour is a component of its own class.

    Args:
        classes: Class index per voxel, `(X, Y, Z)` integer, 0 for background.
        numbers: Indices of the classes to clean.
        largest: Keep only the largest component of each of these classes; of equally large ones, the first in
            array order.
        min_voxels: Components with fewer voxels are removed, including the largest one.

    Returns:
        A new array like `classes`.
    """
    cleaned = classes.copy()
    for number in numbers:
        components, count = ndimage.label(classes == number, CONNECTED)
        if not count:
            continue
        sizes = np.bincount(components.ravel(), minlength=count + 1)
        sizes[0] = 0  # voxels outside all components
        is_kept = sizes >= max(1, min_voxels)
        if largest:
            is_kept &= np.arange(count + 1) == sizes.argmax()
        cleaned[(components > 0) & ~is_kept[components]] = 0
    return cleaned


def voxels_in(volume_ml, affine):
    """Return the number of voxels in a volume, rounded up; `affine` `(4, 4)` in mm."""
    return math.ceil(volume_ml / voxel_ml(affine) - ROUNDING)
