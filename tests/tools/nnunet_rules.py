"""The rules of nnU-Net v2 for a raw dataset, from its documentation and its integrity check (2.8)."""

import json
import re

import nibabel
import numpy as np


def read_dataset(folder):
    """Read a raw dataset as nnU-Net does and assert its rules; returns `{case: (images, label map)}` and the folds."""
    description = json.loads((folder / "dataset.json").read_text())
    assert {"channel_names", "labels", "numTraining", "file_ending"} <= description.keys()
    assert re.fullmatch(r"Dataset\d{3}_\w+", folder.name)
    ending, channels = description["file_ending"], description["channel_names"]
    assert list(channels) == [str(number) for number in range(len(channels))]
    labels = description["labels"]
    assert labels["background"] == 0 and "ignore" not in labels
    assert np.all(np.ediff1d(sorted(labels.values())) == 1)
    cases = cases_of(folder / "imagesTr", ending)
    assert len(cases) == description["numTraining"]
    pairs = {case: read_case(folder, "Tr", case, description) for case in cases}
    folds = json.loads((folder / "splits_final.json").read_text())
    for fold in folds:
        assert fold["train"] and fold["val"] and not set(fold["train"]) & set(fold["val"])
        assert {*fold["train"], *fold["val"]} <= set(cases)
    return pairs, folds


def cases_of(folder, ending=".nii.gz"):
    """Return the case identifiers in a folder of images: names without channel and suffix."""
    names = [path.name for path in folder.iterdir() if path.name.endswith(ending)]
    assert all(re.fullmatch(rf"[A-Za-z0-9_=-]+_\d{{4}}{re.escape(ending)}", name) for name in names)
    return sorted({name[: -len(ending) - 5] for name in names})


def read_case(folder, part, case, description):
    """Return images `(C, X, Y, Z)` and label map of a case, checked as in `check_cases` and `verify_labels`."""
    ending = description["file_ending"]
    files = sorted((folder / f"images{part}").glob(f"{case}_[0-9][0-9][0-9][0-9]{ending}"))
    assert [file.name for file in files] == [
        f"{case}_{number:04d}{ending}" for number in range(len(description["channel_names"]))
    ]
    label = nibabel.load(folder / f"labels{part}" / f"{case}{ending}")
    images = [nibabel.load(file) for file in files]
    for image in images:
        assert image.ndim == 3 and image.shape == label.shape
        assert np.array_equal(image.affine, label.affine)
        assert np.allclose(image.header.get_zooms(), label.header.get_zooms())
        assert np.allclose(image.header.get_zooms(), np.linalg.norm(image.affine[:3, :3], axis=0))
    values = np.stack([np.asarray(image.dataobj) for image in images])
    assert not np.isnan(values).any()
    classes = np.asarray(label.dataobj)
    assert classes.dtype.kind in "iu" and set(np.unique(classes)) <= set(description["labels"].values())
    return values, classes
