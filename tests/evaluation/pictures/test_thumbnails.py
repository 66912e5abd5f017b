"""Thumbnails of the test subjects: selection, order and contours."""

import io
import types
from pathlib import Path

import nibabel
import numpy as np
import pandas
import pytest
from PIL import Image

from data.layouts.subjects import SubjectFiles
from evaluation.pictures.overlays import Picture
from evaluation.pictures.thumbnails import HEIGHT_PX, crop_around, draw_predictions, draw_thumbnails, worst_first
from evaluation.scores.scores import MEAN
from tests.evaluation.made_scores import as_scores
from utils.config.data import Wanted
from utils.label_colours import legend_of

AFFINE = np.diag([-2.0, 2.0, 6.0, 1.0])
WANTED = Wanted(Path(), {"t2": "{subject}/t2.nii.gz"}, labels={"liver": [1]})


def pixels_of(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)


def box_of(mask):
    rows, columns = np.nonzero(mask)
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


def test_subjects_without_a_value_and_the_worst_come_first():
    scores = {"a": (0.9, 0.8), "b": (0.2, 0.9), "c": (0.5, 0.5), "d": (np.nan, np.nan), "e": (0.5, 0.5)}
    values = pandas.DataFrame([{"subject": s, "label": MEAN, "value": v} for s, pair in scores.items() for v in pair])
    assert worst_first(values) == worst_first(values.sample(frac=1, random_state=0)) == ["d", "c", "e", "b", "a"]


@pytest.mark.parametrize("seed", range(20))
def test_the_part_shown_holds_all_labels_and_half_of_each_side(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros(rng.integers(5, 40, 2), bool)
    for _ in range(2):
        mask[tuple(rng.integers(0, mask.shape))] = True
    rows, columns = crop_around(mask)
    assert mask[rows, columns].sum() == mask.sum()
    for part, length in zip((rows, columns), mask.shape, strict=True):
        assert 0 <= part.start < part.stop <= length
        assert part.stop - part.start >= length // 2
    assert mask[crop_around(np.zeros_like(mask))].shape == mask.shape


def test_contours_are_drawn_around_the_labels():
    """The reference is white and the prediction coloured, each around its own block, on a grid to be reoriented."""
    reference, prediction = np.zeros((2, 40, 30, 3), np.uint8)
    reference[10:20, 12:24, 1] = 1
    prediction[24:30, 6:12, 1] = 1
    image = np.zeros(reference.shape)
    image[0, 0] = 1.0
    picture = Picture("s", image, reference, {"random": prediction}, {"random": 0.0}, np.diag([-2.0, 3.0, 5.0, 1.0]))
    (jpeg,) = draw_predictions(picture, legend_of({"liver": 1}))
    pixels = pixels_of(jpeg)
    assert pixels.shape[0] == HEIGHT_PX
    is_white = pixels.min(axis=2) > 170
    is_coloured = (pixels[..., 0] > 170) & (pixels[..., 2] < 120)
    # Rows run from anterior to posterior, so the second axis is reversed; the first already starts at the right.
    turned = [np.flip(one[:, :, 1].T, 0) for one in (reference, prediction)]
    box = crop_around(turned[0] + turned[1] > 0)
    scale = HEIGHT_PX / turned[0][box].shape[0]
    wide = 2 / 3  # a pixel is 2 mm wide and 3 mm high
    for drawn, block in zip((is_white, is_coloured), turned, strict=True):
        top, bottom, left, right = box_of(block[box])
        expected = np.multiply((top, bottom, left, right), (scale, scale, scale * wide, scale * wide))
        np.testing.assert_allclose(box_of(drawn), expected, atol=3.5)


@pytest.fixture
def study(tmp_path):
    """Make three subjects with two inits; returns the arguments of `draw_thumbnails`."""
    rng, files, rows = np.random.default_rng(0), {}, []
    for number, subject in enumerate(("s1", "s2", "s3")):
        label = np.zeros((20, 18, 4), np.uint8)
        label[4:12, 5:11, 1:3] = 1
        paths = [tmp_path / f"{subject}_{kind}.nii.gz" for kind in ("t2", "label")]
        nibabel.save(nibabel.Nifti1Image(rng.normal(200, 20, label.shape).astype(np.float32), AFFINE), paths[0])
        nibabel.save(nibabel.Nifti1Image(label, AFFINE), paths[1])
        files[subject] = SubjectFiles(subject, {"t2": paths[0]}, paths[1])
        for init in ("random", "constrained"):
            for repeat in (1, 0):
                folder = tmp_path / init / f"r{repeat}"
                (folder / "predictions").mkdir(parents=True, exist_ok=True)
                nibabel.save(nibabel.Nifti1Image(label, AFFINE), folder / "predictions" / f"{subject}.nii.gz")
                row = {"subject": subject, "init": init, "repeat": repeat, "label": "liver", "folder": folder}
                rows.append(row | {"dice": 0.9 - 0.1 * number + 0.01 * repeat})
    scores = as_scores(pandas.DataFrame(rows).assign(contrasts="t2", n_annotated=2), inits=("random", "constrained"))
    return types.SimpleNamespace(scores=scores, files=files, folder=tmp_path)


def draw(study, **options):
    return draw_thumbnails(study.scores, study.files, "t2", WANTED, legend_of({"liver": 1}), **options)


def test_every_subject_and_init_is_shown_with_its_first_repeat(study):
    thumbnails, notes = draw(study)
    assert list(thumbnails) == ["s3", "s2", "s1"] and not notes
    for subject, dice in zip(thumbnails, (0.7, 0.8, 0.9), strict=True):
        first, second = thumbnails[subject]
        assert (first.init, second.init) == ("random", "constrained")
        assert first.dice == second.dice == pytest.approx(dice)
        assert second.folder == study.folder / "constrained" / "r0"
        assert pixels_of(first.jpeg).shape[0] == HEIGHT_PX


def test_what_cannot_be_shown_is_said(study):
    (study.folder / "random" / "r0" / "predictions" / "s2.nii.gz").unlink()
    del study.files["s3"]
    thumbnails, notes = draw(study)
    assert list(thumbnails) == ["s1"]
    assert len(notes) == 2 and "s3: was a test subject" in notes[0] and "s2.nii.gz: not readable" in notes[1]


def test_an_init_that_is_missing_for_one_subject_is_left_out(study):
    rows = study.scores.frame
    study.scores = study.scores.only((rows.subject != "s1") | (rows.init != "constrained"))
    thumbnails, _ = draw(study)
    assert [one.init for one in thumbnails["s1"]] == ["random"] and len(thumbnails["s2"]) == 2


def test_the_best_subjects_are_left_out_when_the_page_would_grow_too_large(study):
    size = sum(len(one.jpeg) for one in draw(study)[0]["s3"])
    thumbnails, notes = draw(study, budget=int(2.5 * size))
    assert list(thumbnails) == ["s3", "s2"]
    assert notes == ["Thumbnails of the worst 2 of 3 subjects; more would not fit on the page."]
