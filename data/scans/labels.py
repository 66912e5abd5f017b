"""The meaning of the values of label maps, constraint maps and masks, and whether they can be used."""

import numpy as np

from data.layouts.subjects import SubjectFiles
from data.scans.nifti import whole_number
from utils.config.data import Wanted


def classes_of(files: SubjectFiles, values: np.ndarray, wanted: Wanted) -> tuple[np.ndarray, list[str]]:
    """Turn the values of a label map into class indices.

    Args:
        files: `SubjectFiles` with that label map.
        values: `(X, Y, Z)`, as on disk.
        wanted: `labels` (class name -> its values, or names of `files.label_names`; classes are numbered from 1 in this
            order) and `ignored` (values that count as background, besides 0) are used.

    Returns:
        `(classes (X, Y, Z) uint8, problems)`.
    """
    classes = np.zeros(values.shape, np.uint8)
    known = {0: 0, **dict.fromkeys(_values_of(files, wanted.ignored), 0)}
    for index, members in enumerate(wanted.labels.values(), start=1):
        known |= dict.fromkeys(_values_of(files, members), index)
    present = [(value, whole_number(value)) for value in np.unique(values).tolist()]
    for value, meant in present:
        if known.get(meant):
            classes[values == value] = known[meant]
    return classes, _unknown_values(files, [pair for pair in present if pair[1] not in known])


def _unknown_values(files, unknown):
    """Report values of a label map without a meaning, `(value, whole number it stands for)`; at most one line."""
    subject, path = files.subject, files.label
    names = {value: f" ({name})" for name, values in files.label_names.items() if len(values) == 1 for value in values}
    broken = [pair for pair in unknown if not isinstance(pair[1], int)]
    shown = [f"{value:.9g}{names.get(meant, '')}" for value, meant in broken or unknown]
    listed = ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
    if broken:
        cure = "export it as class numbers; label maps are resampled by nearest neighbour, never interpolated"
        return [f"{subject}: '{path}' holds the values {listed}, which are not whole numbers; {cure}"]
    if unknown:
        cure = "name them, or list them in data.ignored_label_values"
        return [f"{subject}: '{path}' holds the values {listed}, which data.labels does not name; {cure}"]
    return []


def _values_of(files, members):
    """Return the values that numbers and names in a config stand for in the label map of a subject."""
    return [value for member in members for value in files.label_names.get(member, (member,))]


def map_problems(where: str, values: np.ndarray, clusters: int) -> list[str]:
    """Say why values are not a constraint map of at most `clusters` classes; at most one line."""
    if values.dtype.kind not in "iu":
        return [f"{where} holds {values.dtype} values, expected integers"]
    if values.ndim != 3:
        return [f"{where} is {values.shape}, expected 3 axes"]
    low, high = values.min(), values.max()
    is_sound = low >= 0 and 1 <= high <= clusters
    return [] if is_sound else [f"{where} has classes from {low} to {high}, expected 1 to {clusters}"]


def mask_problems(where: str, values: np.ndarray) -> list[str]:
    """Say why values are not a mask, which has two values, one of them 0; at most one line."""
    low, high = values.min(), values.max()  # both NaN if any value is
    if not (np.isfinite(low) and np.isfinite(high)):
        return [f"{where} holds NaN or infinite values; a mask is 0 and 1"]
    if not values.any():
        return [f"{where} is empty; a mask needs foreground"]
    if not np.logical_or(values == low, values == high).all():
        what = f"holds more than two values, from {low:g} to {high:g}; a mask is 0 and 1"
        return [f"{where} {what}: cut probabilities and label maps at a threshold"]
    if low != high and low and high:
        return [f"{where} holds {low:g} and {high:g}, but no 0; a mask is 0 and 1"]
    return []
