"""Reading label maps written by this suite, and writing NIfTI files."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from data.scans.nifti import Image, read_image, whole_number
from data.scans.scan import is_folder
from utils.checks import InputError
from utils.runs import atomic_path

STEPS = 65_535  # between intensities stored in 16 bits


def read_label_map(path: Path, subject: str, largest: int) -> Image:
    """Read a label map of this suite, which may have been edited and saved since.

    Args:
        path: The file; floats are accepted if all of them are whole numbers.
        subject: Identifier, for messages.
        largest: Largest class that may occur.

    Returns:
        `Image` of `(X, Y, Z)` integers.

    Raises:
        InputError: The file cannot be read, has other axes, or holds values that are not classes.
    """
    image, problems = read_image(path, subject)
    again = "restore it, or make it again with --overwrite"
    if image and len(image.shape) != 3:
        problems = [f"{subject}: '{path}' is {image.shape}, expected 3 axes; {again}"]
    if image is None or problems:
        raise InputError(problems)
    present = np.unique(image.values).tolist()
    strange = [value for value in present if whole_number(value) not in range(largest + 1)]
    if strange:
        listed = ", ".join(f"{value:.9g}" for value in strange[:8]) + (", ..." if len(strange) > 8 else "")
        raise InputError(f"{subject}: '{path}' holds {listed}, expected whole numbers from 0 to {largest}; {again}")
    return Image(np.rint(image.values).astype(np.uint8 if largest < 256 else np.int32), image.affine)


def write_nifti(
    path: Path,
    array: np.ndarray,
    affine: np.ndarray,
    header_of: Any = None,
    span: tuple[float, float] | None = None,
    intent: str = "none",
) -> None:
    """Write an array as NIfTI, either completely or not at all.

    Args:
        path: `*.nii` or `*.nii.gz`.
        array: `(X, Y, Z)` or `(X, Y, Z, C)`; integers stay integers (bool as uint8, 64 bits as 32), floats are float32.
        affine: `(4, 4)`, voxel to world in RAS+.
        header_of: NIfTI file, or its header, whose units and orientation codes are kept; None: mm, scanner coordinates.
        span: Lowest and highest value; the array is clipped to them and stored in 65,536 levels, in a fraction of the
            space. None: values are stored unchanged.
        intent: NIfTI's name for the meaning of the values; `label` (1002): classes, which viewers show in colours.
    """
    array = np.asarray(array)
    step = (span[1] - span[0]) / STEPS if span and span[1] > span[0] else 1.0
    if span:
        # In float64: rounded in float32, the highest value can become 65,536, which wraps to 0 in 16 bits.
        array = np.rint((np.clip(array.astype(np.float64), *span) - span[0]) / step).astype(np.uint16)
    elif array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    elif array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype.itemsize == 8:
        if array.size and np.abs(array).max() > np.iinfo(np.int32).max:
            raise ValueError(f"{path}: integers beyond 32 bits")
        array = array.astype(np.int32)
    source = header_of
    if isinstance(header_of, str | Path):  # a DICOM series has no such header
        source = None if is_folder(header_of) else nibabel.load(header_of).header.copy()
    image = nibabel.Nifti1Image(array, affine, source, dtype=array.dtype)
    if source is None:
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, code="scanner")
        image.set_qform(affine, code="scanner")
    else:
        image.header["cal_min"] = image.header["cal_max"] = 0  # these would be the display window of another image
        image.header.set_slope_inter(1, 0)
    if span:
        image.header.set_slope_inter(step, span[0])
    if intent != "none":
        image.header.set_intent(intent)
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)
