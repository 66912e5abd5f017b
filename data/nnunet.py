"""Input of nnU-Net v2: names of cases and files, `dataset.json`, and the folds in `splits_final.json`.

Its rules, from its documentation (dataset-format, manual_data_splits) and `verify_dataset_integrity.py`: a case has one
file per channel, `<case>_<four digits><file ending>`, and one label map `<case><file ending>` on the same grid; labels
are numbered 0, 1, 2, ... and 0 is called `background`; `ignore` has a special meaning; the name of a channel selects
its normalisation: z-scores, unless it is one of `NORMALISATIONS`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.scans.volumes import write_nifti

FILE_ENDING = ".nii.gz"
# Keeps the affine unchanged; the default reader refuses axes whose cosines are orthogonal only to float32 precision.
READER = "NibabelIO"
NORMALISATIONS = ("ct", "nonorm", "zscore", "rescale_0_1", "rescale_to_0_1", "rgb_to_0_1")
RESERVED = "ignore"  # not allowed as the name of a label
PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
OWN_ENDING = "_seg"  # ending of files that nnU-Net itself writes beside those of a case
CODED = re.compile(rb"=([0-9A-F]{2})")


def case_name(subject: str) -> str:
    """Name the case of a subject in ASCII letters, digits, - and _; any other byte of its UTF-8 becomes `=XX`.

    The underscore of a final `_seg` is encoded too, because nnU-Net takes such files for its own.
    """
    name = subject.encode("utf-8", "surrogateescape")
    case = "".join(chr(byte) if byte in PLAIN else f"={byte:02X}" for byte in name)
    return f"{case.removesuffix(OWN_ENDING)}=5Fseg" if case.endswith(OWN_ENDING) else case


def subject_of_case(case: str) -> str:
    """Return the subject of a case, the inverse of `case_name`; a name that is not a case is returned unchanged."""
    if not case.isascii():
        return case
    decoded = CODED.sub(lambda match: bytes([int(match[1], 16)]), case.encode())
    return decoded.decode("utf-8", "surrogateescape")


def dataset_name(number: int, *parts: str) -> str:
    """Name the folder of a dataset, such as `Dataset501_chaos_mr_t1`."""
    return f"Dataset{number:03d}_{re.sub(r'[^A-Za-z0-9]+', '_', '_'.join(parts)).strip('_')}"


def dataset_description(
    channels: Sequence[str], labels: Sequence[str], cases: int, *, name: str, description: str
) -> dict[str, Any]:
    """Return the contents of `dataset.json`.

    Args:
        channels: Names of the input channels, in the order of their files.
        labels: Class names in the order of their indices 1, 2, ...
        cases: Number of cases in `imagesTr`.
        name: Name of the dataset, for readers.
        description: Description of the dataset, for readers.
    """
    named = [f"{channel} (MR)" if channel.casefold() in NORMALISATIONS else channel for channel in channels]
    return {
        "channel_names": {str(number): channel for number, channel in enumerate(named)},
        "labels": {"background": 0} | {label: index for index, label in enumerate(labels, start=1)},
        "numTraining": cases,
        "file_ending": FILE_ENDING,
        "overwrite_image_reader_writer": READER,
        "name": name,
        "description": description,
    }


def fold_of(train: Sequence[str], val: Sequence[str]) -> dict[str, list[str]]:
    """Return the entry of `splits_final.json` for the subjects of one training."""
    return {"train": sorted(map(case_name, train)), "val": sorted(map(case_name, val))}


def image_file(folder: Path, subject: str, channel: int) -> Path:
    """Return the path of one channel of a subject in a folder of images."""
    return folder / f"{case_name(subject)}_{channel:04d}{FILE_ENDING}"


def label_file(folder: Path, subject: str) -> Path:
    """Return the path of the label map of a subject in a folder of label maps."""
    return folder / f"{case_name(subject)}{FILE_ENDING}"


def write_case(
    folders: tuple[Path, Path], subject: str, volume: np.ndarray, classes: np.ndarray, affine: np.ndarray
) -> list[tuple[Path, int]]:
    """Write the channels and the label map of one subject, all with the same affine.

    Args:
        folders: The folder of the images and that of the label maps.
        subject: Identifier.
        volume: `(X, Y, Z, C)`.
        classes: Class indices `(X, Y, Z)`.
        affine: `(4, 4)`, voxel to world.

    Returns:
        The files, each with the number of its folder in `folders`.
    """
    images, labels = folders
    arrays = {image_file(images, subject, channel): volume[..., channel] for channel in range(volume.shape[-1])}
    arrays[label_file(labels, subject)] = classes
    for path, array in arrays.items():
        write_nifti(path, array, affine, intent="label" if path.parent == labels else "none")
    return [(path, folders.index(path.parent)) for path in arrays]
