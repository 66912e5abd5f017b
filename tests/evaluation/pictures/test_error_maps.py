"""Error maps: values recomputed from the NIfTI files, choice of slices, and drawing."""

import dataclasses
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from data.layouts.subjects import SubjectFiles
from evaluation.pictures.error_maps import ErrorMaps, draw_error_maps, largest_error, read_error_maps
from evaluation.report.synthesis import draw_error_figures
from evaluation.scores.measures import SYNTHESIS
from evaluation.scores.scores import read_scores
from tests.evaluation.synthesis_study import AFFINE, CONTRASTS, LESION, SHAPE, TARGETS, TEST, make_scans, make_work
from utils.checks import InputError
from utils.config.data import Wanted

INITS = ["random", "constrained"]
PATTERNS = {name: f"{{subject}}/{name}.nii.gz" for name in CONTRASTS}
WANTED = Wanted(Path(), PATTERNS, labels={"lesion": [1]})


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return scans, the config of a finished work dir and its results; not to be changed."""
    scans = make_scans(tmp_path_factory.mktemp("scans"))
    _, config = make_work(scans, tmp_path_factory.mktemp("work"))
    return scans, config, read_scores(config.work_dir, SYNTHESIS, inits=tuple(INITS))


def files_of(scans, kinds=("label", "mask")):
    found = {}
    for subject in TEST:
        folder = scans.root / subject
        extra = {kind: folder / f"{kind}.nii.gz" for kind in kinds}
        found[subject] = SubjectFiles(subject, {name: folder / f"{name}.nii.gz" for name in CONTRASTS}, **extra)
    return found


def read(study, n=2, kinds=("label", "mask"), labels=True, scores=None):
    scans, _, found = study
    wanted = WANTED if labels else dataclasses.replace(WANTED, labels={})
    return read_error_maps((scores or found).of(n_annotated=n), files_of(scans, kinds), wanted)


def changed(scores, **columns):
    return dataclasses.replace(scores, frame=scores.frame.assign(**columns))


def radiological(volume, z):
    """Orient a slice; the first axis of these files already starts at the right, the second one posterior."""
    return volume[:, ::-1, z].T


def scaled_from_disk(path, low, high):
    stored = np.asarray(nibabel.load(path).dataobj, np.float64)
    return np.clip((stored - low) / (high - low), 0, 1)


@pytest.mark.parametrize("n", [2, 10])
def test_errors_are_those_of_the_files_in_units_of_the_data_range(study, n):
    scans, config, _ = study
    pictures = read(study, n)
    assert len(pictures) == 2
    for one in pictures:
        subject = one.title.split(": ")[1]
        for init in INITS:
            folder = config.work_dir / "synthesis" / init / f"n{n:02d}" / "r0"
            rows = json.loads((folder / "metrics.json").read_text())["per_subject"]
            for row in (row for row in rows if row["subject"] == subject):
                label, ends = row["label"], (row["intensity_low"], row["intensity_high"])
                acquired = scaled_from_disk(scans.root / subject / f"{label}.nii.gz", *ends)
                made = scaled_from_disk(folder / "predictions" / f"{subject}_{label}.nii.gz", *ends)
                expected = radiological(np.abs(made - acquired), 4)  # the slice with the lesion
                np.testing.assert_allclose(one.errors(label)[init], expected, atol=1e-5)
                np.testing.assert_allclose(one.acquired[label], radiological(acquired, 4), atol=1e-5)
                assert np.mean((made - acquired) ** 2) == pytest.approx(row["mse"], rel=1e-3)
                assert one.ssim[label][init] == pytest.approx(row["ssim_mask"])


def test_the_median_and_the_worst_subject_by_ssim_are_shown(study):
    results, means = study[2].frame, {}
    for subject in TEST:
        means[subject] = results[(results["subject"] == subject) & (results["n_annotated"] == 2)]["ssim_mask"].mean()
    ranked = sorted(TEST, key=means.get)
    assert [one.title for one in read(study)] == [f"median: {ranked[2]}", f"worst: {ranked[0]}"]


def test_the_slice_is_that_of_the_lesion_or_else_of_the_largest_foreground(study):
    scans, _, _ = study
    lesion = np.zeros(SHAPE)
    lesion[*LESION, 4] = 1
    rows, columns = np.nonzero(radiological(lesion, 4))
    picture = read(study)[-1]
    bright = picture.acquired["t2"] - picture.acquired["t1"]  # apart from noise, only the lesion differs
    assert (
        bright[rows, columns].mean() > 0.2 and abs(np.delete(bright.ravel(), rows * SHAPE[0] + columns).mean()) < 0.05
    )
    areas = scans.head.sum(axis=(0, 1))
    largest = int(np.argmax(areas))
    for kinds, labels in ((("mask",), True), (("label", "mask"), False), ((), False)):
        picture = read(study, kinds=kinds, labels=labels)[-1]
        subject = picture.title.split(": ")[1]
        expected = radiological(scans.scaled[subject][..., 0], largest)
        np.testing.assert_allclose(picture.acquired["t1"], expected, atol=1e-5)
    assert areas[largest] > areas[4]


def test_what_is_missing_or_does_not_fit_is_named(study):
    scans, config, scores = study
    rows = scores.frame
    with pytest.raises(InputError, match="no result with random initialisation yet"):
        read(study, scores=scores.only((rows["init"] != "random") | (rows["subject"] == TEST[0])))
    with pytest.raises(InputError, match="gone: was a test subject"):
        read(study, scores=changed(scores, subject="gone"))
    moved = changed(scores, folder=[folder.parent / "elsewhere" for folder in rows["folder"]])
    with pytest.raises(InputError, match=r"_t1.nii.gz: not readable"):
        read(study, scores=moved)
    undefined = changed(scores, ssim_mask=np.nan)
    figures, notes = draw_error_figures(undefined, lambda: files_of(scans), config.work_dir, WANTED)
    assert not figures and notes[0] == "No error maps at N = 2: no test subject has an SSIM inside the mask."


def make_maps(inits, subject="worst: s1", error=0.2):
    """Return a flat image of 0.5 and syntheses that are wrong by `error`, twice that, and so on."""
    acquired = np.full((6, 5), 0.5)
    made = {init: acquired + error * (number + 1) for number, init in enumerate(inits)}
    return ErrorMaps(subject, 1.0, dict.fromkeys(TARGETS, acquired), dict.fromkeys(TARGETS, made),
                     dict.fromkeys(TARGETS, dict.fromkeys(inits, 0.75)))  # fmt: skip


def test_rows_are_contrasts_and_all_errors_share_one_scale_with_a_bar():
    pictures = [make_maps(INITS, "median: s2", 0.05), make_maps(INITS)]
    figure = draw_error_maps(pictures, "t1gd, N = 2", largest_error(pictures))
    *axes, bar = figure.axes
    titles = ["acquired", "random: SSIM 0.750", "constrained: SSIM 0.750", "|error|: random", "|error|: constrained"]
    assert [axis.get_title() for axis in axes] == titles * 4
    assert [axis.get_ylabel() for axis in axes[::5]] == [
        "median: s2\nt1",
        "median: s2\nt2",
        "worst: s1\nt1",
        "worst: s1\nt2",
    ]
    assert bar.get_ylabel() == "|synthesised - acquired|, units of the data range"
    for number, axis in enumerate(axes):
        (image,) = axis.images
        is_error = number % 5 > 2
        assert image.get_clim() == ((0, 0.4) if is_error else (0, 1))
        assert image.get_cmap().name == ("inferno" if is_error else "gray")
    np.testing.assert_allclose(axes[-1].images[0].get_array(), 0.4)
    np.testing.assert_allclose(axes[3].images[0].get_array(), 0.05)


def test_with_many_inits_errors_stand_below_their_images():
    inits = ["random", "regression", "global", "constrained"]
    figure = draw_error_maps([make_maps(inits)], "", 0.5)
    axes = np.reshape(figure.axes[:-1], (4, 5))
    for upper, lower in (axes[:2], axes[2:]):
        assert [axis.get_title() for axis in upper] == ["acquired", *(f"{init}: SSIM 0.750" for init in inits)]
        assert [axis.get_title() for axis in lower] == ["", *(f"|error|: {init}" for init in inits)]
        assert [axis.axison for axis in lower] == [False, True, True, True, True]


def test_the_figures_of_all_n_have_the_same_scale(study, tmp_path, monkeypatch):
    scans, _, found = study
    scores, scales = dataclasses.replace(found, is_simulated=True), []

    def remember(pictures, title, highest):
        scales.append((title, highest))
        return draw_error_maps(pictures, title, highest)

    monkeypatch.setattr("evaluation.report.synthesis.draw_error_maps", remember)
    (figure,), notes = draw_error_figures(scores, lambda: files_of(scans), tmp_path, WANTED)
    assert [png.name for png in figure.pngs] == ["error_maps_n02.png", "error_maps_n10.png"] and not notes
    assert [title for title, _ in scales] == [
        f"Simulated scans. Synthesised from t1gd+flair, N = {n} finetuning subjects" for n in (2, 10)
    ]
    errors = np.concatenate(
        [error.ravel() for n in (2, 10) for one in read(study, n) for t in TARGETS for error in one.errors(t).values()]
    )
    (highest,) = {highest for _, highest in scales}
    assert 0 <= highest - np.sort(errors)[int(0.995 * len(errors))] < 0.03
    assert np.diag(AFFINE)[0] < 0  # the files start at the right, as `radiological` assumes
