"""Simulated subjects: reproducible, correctly oriented, and with their true parameters."""

import numpy as np
import pytest
from scipy import ndimage

from data.simulation.anatomy import Anatomy, grid_axes
from data.simulation.sequences import RENAL_PROTOCOL, spin_echo
from data.simulation.subjects import ANATOMIES, _parameter_maps, _scan, _truth, block_mean, majority, simulate_subject
from data.simulation.tissues import TISSUE_INDEX, average_tissues
from utils.checks import InputError

SHAPE = (48, 40, 12)


@pytest.fixture(scope="module")
def subject():
    return simulate_subject("renal", "sub-001", 4, SHAPE)


def uniform(tissue, shape=(24, 24, 24)):
    axes = grid_axes((0, 0, 0), (60, 60, 60), shape)
    filled = np.full(shape, TISSUE_INDEX[tissue], np.uint8)
    return Anatomy(filled, np.zeros_like(filled), np.zeros_like(filled), axes)


def test_what_a_subject_holds(subject):
    assert list(subject.contrasts) == ["dixon_in", "dixon_opp", "t1w", "t2w", "bold", "dwi", "t2_echoes"]
    for name, image in subject.contrasts.items():
        assert image.shape == ((*SHAPE, 4) if name == "t2_echoes" else SHAPE)
        assert image.dtype == np.int16 and image.min() >= 0 and image.max() > 1500
    assert set(subject.truth) == {"true_t1", "true_t2", "true_pd", "true_tissue"}
    assert set(np.unique(subject.label)) == {0, 1, 2, 3, 4}
    np.testing.assert_allclose(np.diag(subject.affine), [8, 8, 12, 1])


def test_the_brain_has_its_own_contrasts_and_labels():
    brain = simulate_subject("brain_tumour", "sub-001", 4, (40, 48, 13))
    assert list(brain.contrasts) == ["t1", "t1gd", "t2", "flair"]
    assert set(np.unique(brain.label)) <= {0, 1, 2, 3} and (brain.label == 3).any()
    enhancing, contrasts = brain.label == 3, brain.contrasts
    white = (brain.truth["true_t1"] > 700) & (brain.truth["true_t1"] < 950)
    after, before = (contrasts[name][enhancing].mean() / contrasts[name][white].mean() for name in ("t1gd", "t1"))
    assert after > 1.3 * before
    assert (contrasts["flair"][brain.label == 2].mean()) > 1.1 * contrasts["flair"][white].mean()


def test_same_seed_same_subject_other_seed_another(subject):
    again = simulate_subject("renal", "sub-001", 4, SHAPE)
    for name, image in subject.contrasts.items():
        np.testing.assert_array_equal(again.contrasts[name], image)
    other_seed, other_name = (simulate_subject("renal", name, seed, SHAPE) for name, seed in [("sub-001", 5), ("a", 4)])
    assert (other_seed.label != subject.label).mean() > 0.02
    assert (other_name.label != subject.label).mean() > 0.02


def test_resolution_does_not_change_the_anatomy(subject):
    finer = simulate_subject("renal", "sub-001", 4, tuple(2 * number for number in SHAPE))
    both = [(subject.label == 3).mean(), (finer.label == 3).mean()]
    assert both[0] == pytest.approx(both[1], rel=0.05)
    coarse = np.repeat(np.repeat(np.repeat(subject.label, 2, 0), 2, 1), 2, 2)
    assert 2 * ((coarse == 3) & (finer.label == 3)).sum() / ((coarse == 3).sum() + (finer.label == 3).sum()) > 0.9


def test_true_parameters_follow_the_tissues(subject):
    spleen, liver = subject.label == 4, subject.label == 3
    assert np.median(subject.truth["true_t1"][spleen]) == pytest.approx(1328, rel=0.3)
    assert np.median(subject.truth["true_t1"][spleen]) > np.median(subject.truth["true_t1"][liver])
    assert subject.truth["true_pd"].max() <= 100
    assert (subject.truth["true_t1"][subject.truth["true_pd"] == 0] == 0).all()
    assert subject.truth["true_pd"][0, 0, 0] == 0  # a corner of the image is air


def test_true_tissue_agrees_with_label_and_parameters(subject):
    tissue = subject.truth["true_tissue"]
    assert tissue.dtype == np.uint8 and tissue.max() < len(TISSUE_INDEX)
    names = np.array(list(TISSUE_INDEX))[tissue]
    assert (names[subject.truth["true_pd"] == 0] == "air").all()
    for label, tissues in ((3, ["liver"]), (4, ["spleen"]), (1, ["renal_cortex", "renal_medulla"])):
        inside = ndimage.binary_erosion(subject.label == label)
        assert inside.any() and np.isin(names[inside], [*tissues, "blood"]).mean() > 0.9


def test_truth_of_a_mixed_voxel_is_the_mean_over_its_protons():
    maps = {name: np.zeros((2, 2, 2)) for name in ("pd", "fat", "t1", "t2")}
    maps["pd"][0], maps["t1"][0], maps["t2"][0], maps["fat"][0] = 80.0, 1000.0, 50.0, 25.0
    maps["pd"][1, 0], maps["t1"][1, 0], maps["t2"][1, 0] = 40.0, 2000.0, 100.0
    maps["lipid"] = {"t1": 400.0, "t2": 60.0}
    truth = _truth(maps)
    assert truth["true_pd"].item() == pytest.approx((4 * 80 + 2 * 40) / 8)
    assert truth["true_t1"].item() == pytest.approx((4 * 80 * (0.75 * 1000 + 0.25 * 400) + 2 * 40 * 2000) / 400)
    assert truth["true_t2"].item() == pytest.approx((4 * 80 * (0.75 * 50 + 0.25 * 60) + 2 * 40 * 100) / 400)


def test_a_uniform_block_shows_the_signal_of_its_tissue():
    drawn = uniform("spleen")
    maps = _parameter_maps(drawn, average_tissues(), np.random.default_rng(1))
    assert np.log(maps["t1"] / 1328).std() == pytest.approx(0.05, rel=0.6)  # within the subject
    series = RENAL_PROTOCOL["t2_echoes"]
    image = _scan(series, maps, np.ones(drawn.tissue.shape), np.random.default_rng(2))
    expected = [spin_echo(1.0, 1328.0, 61.0, tr=2000.0, te=te) for te in series.echo_times[:2]]
    measured = image.reshape(-1, 4).mean(axis=0)
    assert measured[1] / measured[0] == pytest.approx(expected[1] / expected[0], rel=0.05)
    assert (np.diff(measured) < 0).all()


def test_receive_field_and_noise_are_in_the_image():
    drawn = uniform("spleen")
    maps = _parameter_maps(drawn, average_tissues(), np.random.default_rng(1))
    shading = np.broadcast_to(np.linspace(0.5, 1.5, 24)[:, None, None], (24, 24, 24))
    image = _scan(RENAL_PROTOCOL["t2w"], maps, shading, np.random.default_rng(2)).astype(float)
    assert image[-1].mean() / image[0].mean() == pytest.approx(2.8, rel=0.2)
    other = _scan(RENAL_PROTOCOL["t2w"], maps, shading, np.random.default_rng(3)).astype(float)
    assert 0.01 < (image - other).std() / image.mean() < 0.1


def test_block_mean_and_majority_against_loops():
    generator = np.random.default_rng(0)
    values, labels = generator.random((4, 6, 8)), generator.integers(0, 4, (4, 6, 8))
    mean, most = block_mean(values), majority(labels)
    for x, y, z in np.ndindex(2, 3, 4):
        block = np.s_[2 * x : 2 * x + 2, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2]
        assert mean[x, y, z] == pytest.approx(values[block].mean())
        assert most[x, y, z] == np.argmax(np.bincount(labels[block].ravel(), minlength=4))


def test_mistakes_are_named():
    with pytest.raises(InputError, match="anatomy 'knee': unknown; known: renal, brain_tumour"):
        simulate_subject("knee", "sub-001", 1)
    with pytest.raises(InputError, match="--shape 4 40 8: expected X Y Z of at least 8 8 2"):
        simulate_subject("renal", "sub-001", 1, (4, 40, 8))


def test_every_anatomy_labels_from_one_upwards():
    for choice in ANATOMIES.values():
        assert sorted(choice.labels.values()) == list(range(1, len(choice.labels) + 1))
