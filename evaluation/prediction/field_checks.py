"""Whether a new scan matches the training data of a network: tissue within the slices, pixels of the same size."""

import logging
from collections.abc import Sequence

import numpy as np

from data.field_of_view import WARN_FROM
from data.geometry import SliceGrid
from data.intensity import foreground_mask
from data.scans.subject import SubjectReader
from utils.model_description import ModelDescription, TrainingField

log = logging.getLogger("mrccl")

REFUSE_FROM = 0.20  # share of the foreground outside the slices
MORE_THAN_TRAINING = 0.10  # excess over the share of the training scans, if that was large: small organs, large body
WARN_FACTOR, REFUSE_FACTOR = 1.2, 1.5  # ratio of the pixel sizes of a scan and of training


def check_field(reader: SubjectReader, models: Sequence[ModelDescription]) -> list[str]:
    """Compare one scan with the training scans of models.

    Args:
        reader: Reader of a valid scan.
        models: Models that agree with each other (`utils.model_description.check_agreement`).

    Returns:
        Lines that prevent a prediction. Smaller differences are logged as warnings.
    """
    first = models[0]
    grid = SliceGrid(reader.grid.shape, reader.grid.affine, first.slices.pixel_size, first.slices.image_size)
    fields = [model.field or TrainingField() for model in models]
    found = [*_unlike_spacing(reader.subject, grid, first, fields)]
    if not grid.shows_everything:  # otherwise the scan need not be read
        found += _outside(reader, grid, first, fields)
    for line, _ in (pair for pair in found if not pair[1]):
        log.warning("%s", line)
    return [line for line, is_refused in found if is_refused]


def _outside(reader, grid, model, fields):
    share = grid.share_outside(foreground_of(reader, model))
    if share < WARN_FROM:
        return
    lost = max(field.foreground_outside or 0.0 for field in fields)
    size = [pixels * (grid.pixel_size or mm) for pixels, mm in zip(grid.image_size, grid.pixel_spacing, strict=True)]
    where = f"the middle {size[0]:.0f} x {size[1]:.0f} mm (rows x columns)"
    cure = "crop the scan so that the body lies in its middle, or give a model with larger slices"
    line = f"{reader.subject}: {share:.1%} of the tissue lies outside {where} that the model sees, and would count as "
    line += f"background; {cure}"
    yield line, share >= (REFUSE_FROM if lost < REFUSE_FROM else lost + MORE_THAN_TRAINING)


def foreground_of(reader: SubjectReader, model: ModelDescription) -> np.ndarray:
    """Return the given mask, or the head or body in any input contrast, boolean `(X, Y, Z)`."""
    volume, mask, affine = reader.volume(model.contrasts), reader.mask(), reader.grid.affine
    if mask is None:
        channels = np.moveaxis(volume, -1, 0)
        mask = np.logical_or.reduce([foreground_mask(channel[..., None], affine) for channel in channels])
    return mask


def _unlike_spacing(subject, grid, model, fields):
    """Yield `(line, is refused)` if lengths that are not resampled differ from those in training."""
    found = [("pixel_mm", grid.pixel_spacing, "pixels")] if grid.pixel_size is None else []
    if len(model.input_size) == 3:
        found.append(("slice_mm", (grid.slice_spacing,), "slices"))
    for key, lengths, what in found:
        ends = [found for field in fields if (found := getattr(field, key))]
        if not ends:
            continue  # not recorded by older models, nor for scans without a known voxel size
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        factor = max(max(low / length, length / high) for length in lengths)
        if factor > WARN_FACTOR:
            trained = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
            here = " x ".join(f"{length:.3g}" for length in lengths)
            unlike = (
                f"its {what} are {here} mm, those of the scans that the model was trained on {trained} mm, and this "
            )
            line = f"{subject}: {unlike}model does not resample; resample the scan to {trained} mm"
            yield line, factor > REFUSE_FACTOR
