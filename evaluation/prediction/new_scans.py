"""Applying a finetuned model to one new scan: read, predict, write.

`files` are those of the scan; `paths` names the requested outputs and where they are written.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.geometry import SliceGrid
from data.intensity import intensity_ranges, scale_intensities
from data.layouts.subjects import SubjectFiles, file_of_channel
from data.scans.seg_nrrd import write_seg_nrrd
from data.scans.subject import SubjectReader
from data.scans.volumes import write_nifti
from evaluation.prediction.inference import class_volumes, most_probable, predict_slices
from evaluation.prediction.postprocessing import keep_components, voxels_in
from evaluation.prediction.synthesis import synthesise_subject
from evaluation.prediction.tables import write_intensities
from utils.model_description import ModelDescription, SegmentationModel, SynthesisModel

# Slices (2D) and windows (3D): few, to save memory, but at least two: with only one, TensorFlow's sums differ by 1e-4.
BATCH_SIZE = {2: 16, 3: 2}


def patterns_of(model: ModelDescription, channels: Iterable[str]) -> dict[str, Any]:
    """Return the contrasts whose files hold some channels, and their patterns."""
    names = [file_of_channel(model.files, channel)[0] for channel in channels]
    return {name: model.files[name] for name in names}


def read_slices(model: ModelDescription, reader: SubjectReader) -> tuple[np.ndarray, SliceGrid, np.ndarray | None]:
    """Return the input contrasts of a scan as slices, `(S, H, W, C)` float16 in [0, 1]; their grid; and the mask."""
    volume, mask, affine = reader.volume(model.contrasts), reader.mask(), reader.grid.affine
    scaled = scale_intensities(volume, mask, model.percentiles, affine)
    grid = SliceGrid(volume.shape[:3], affine, model.slices.pixel_size, model.slices.image_size)
    # Rounded as in the HDF5 files, so that a test subject gets the same input as in step 4.
    return grid.to_slices(scaled).astype("float16"), grid, mask


def segment(
    network: Any,
    model: SegmentationModel,
    files: SubjectFiles,
    paths: Mapping[str, Path],
    *,
    largest_of: Sequence[str] = (),
    min_component_ml: float = 0.0,
) -> None:
    """Segment one scan; write what `paths` names of it.

    Args:
        network: Anything with Keras' `predict_on_batch`.
        files: The scan.
        paths: `{"label": path, "segments": path, "probabilities": path}`, or some of them; segments are the label map
            as `.seg.nrrd` of 3D Slicer.
        largest_of: Classes of which only the largest connected component is kept in the label map.
        min_component_ml: Volume in mL; smaller connected components of any class are removed from the label map.
    """
    slices, grid, _ = read_slices(model, SubjectReader(files, model.wanted(), model.contrasts))
    volumes = class_volumes(predict_slices(network, slices, BATCH_SIZE[2]), grid)
    if "probabilities" in paths:
        volumes = list(volumes)
        write_nifti(paths["probabilities"], np.stack(volumes, axis=-1), grid.affine, span=(0, 1))
    if "label" in paths or "segments" in paths:
        classes, labels = most_probable(volumes), model.labels
        if min_component_ml:
            smallest = voxels_in(min_component_ml, grid.affine)
            classes = keep_components(classes, labels.values(), min_voxels=smallest)
        if largest_of:
            classes = keep_components(classes, [labels[name] for name in largest_of], largest=True)
        if "label" in paths:
            write_nifti(paths["label"], classes, grid.affine, intent="label")
        if "segments" in paths:
            write_seg_nrrd(paths["segments"], classes, grid.affine, model.legend())


def synthesise(
    network: Any, model: SynthesisModel, files: SubjectFiles, paths: Mapping[str, Path], *, table: Path
) -> None:
    """Synthesise contrasts for one scan and write those in `paths`; `table` records their scaling."""
    reader = SubjectReader(files, model.wanted(), model.contrasts)
    slices, grid, mask = read_slices(model, reader)
    size = model.crop_size
    windows = {"overlap": model.overlap, "batch_size": BATCH_SIZE[len(size)]}
    made = synthesise_subject(network, slices, grid, size, **windows)
    ranges = {target: acquired_range(model, reader, target, mask) for target in paths}
    # Written before the contrasts, so that no result is ever without its row.
    write_intensities(table, files.subject, ranges)
    for target, path in paths.items():
        low, high = ranges[target] or (0.0, 1.0)
        values = low + made[..., model.targets.index(target)] * (high - low)
        write_nifti(path, values, grid.affine, span=(low, high))


def acquired_range(
    model: ModelDescription, reader: SubjectReader, target: str, mask: np.ndarray | None
) -> list[float] | None:
    """Return the acquired contrast's intensities that the network sees as 0 and 1, or None if it was not acquired."""
    if not patterns_of(model, [target]).keys() <= reader.files.contrasts.keys():
        return None
    return intensity_ranges(reader.volume([target]), mask, model.percentiles, reader.grid.affine)[0].tolist()
