"""Grid, smooth fields, shapes, and the two anatomies."""

import numpy as np
import pytest

from data.simulation import brain as brain_anatomy
from data.simulation import renal as renal_anatomy
from data.simulation.anatomy import Canvas, affine_of, grid_axes, rotation, smooth_field
from data.simulation.tissues import TISSUE_INDEX


def axes_of(points=40, extent=80.0):
    return grid_axes((0, 0, 0), (extent,) * 3, (points,) * 3)


def canvas_on(axes):
    return Canvas(np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32), "air")


def test_axes_and_affine_agree():
    axes = grid_axes((10.0, 0.0, -5.0), (40.0, 30.0, 20.0), (10, 6, 4))
    affine = affine_of(axes)
    for voxel in ((0, 0, 0), (3, 5, 1), (9, 2, 3)):
        expected = [axis[index] for axis, index in zip(axes, voxel, strict=True)]
        np.testing.assert_allclose((affine @ (*voxel, 1))[:3], expected)
    np.testing.assert_allclose(np.diag(affine)[:3], [4, 5, 5])
    np.testing.assert_allclose([axis.mean() for axis in axes], [10, 0, -5], atol=1e-9)


def test_smooth_field_has_unit_variance_everywhere_and_is_smooth():
    fields = smooth_field(axes_of(12), 25.0, np.random.default_rng(0), fields=3000)
    np.testing.assert_allclose(fields.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(fields.std(axis=0), 1, atol=0.08)
    step = np.diff(fields, axis=1)
    assert step.std() < 80 / 12 / 25 * 1.3


def test_smooth_field_does_not_depend_on_the_resolution():
    coarse = smooth_field(axes_of(20), 23.0, np.random.default_rng(5))[0]
    fine = smooth_field(axes_of(60), 23.0, np.random.default_rng(5))[0]
    np.testing.assert_allclose(fine[1::3, 1::3, 1::3], coarse, atol=1e-4)  # every third centre coincides


def test_rotation_turns_right_handedly_and_in_order():
    np.testing.assert_allclose(rotation(z_degrees=90) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation(x_degrees=90) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(rotation(y_degrees=90) @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    turn = rotation(20, -35, 50)
    np.testing.assert_allclose(turn, rotation(z_degrees=50) @ rotation(y_degrees=-35) @ rotation(x_degrees=20))
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)


def test_ellipsoid_has_its_volume_turned_or_not():
    canvas = canvas_on(axes_of(80))
    expected = 4 / 3 * np.pi * 20 * 12 * 8  # points are 1 mm apart
    assert len(canvas.ellipsoid((2, 1, -3), (20, 12, 8))) == pytest.approx(expected, rel=0.02)
    assert len(canvas.ellipsoid((2, 1, -3), (20, 12, 8), rotation(30, 40, 50))) == pytest.approx(expected, rel=0.02)


def test_tube_is_a_segment_with_round_ends():
    canvas = canvas_on(axes_of(80))
    index, distance = canvas.tube((-15, 0, 0), (15, 0, 0), 6)
    assert len(index) == pytest.approx(np.pi * 6**2 * 30 + 4 / 3 * np.pi * 6**3, rel=0.02)
    assert distance.max() < 1
    # A wavy tube has a constant cross-section.
    assert len(canvas.tube((-15, 0, 0), (15, 0, 0), 6, 4)[0]) > 0.8 * len(index)


def test_paint_respects_what_may_be_painted_over():
    canvas = canvas_on(axes_of(20))
    everything = np.arange(canvas.tissue.size)
    canvas.paint(everything[:100], "liver", label=3)
    canvas.paint(everything[50:200], "blood", part=4, over=("liver",))
    assert (canvas.tissue[:50] == TISSUE_INDEX["liver"]).all() and (
        canvas.tissue[50:100] == TISSUE_INDEX["blood"]
    ).all()
    assert (canvas.tissue[100:] == TISSUE_INDEX["air"]).all()
    assert set(canvas.part[50:100]) == {4} and not canvas.label[50:].any()


def labelled_ml(anatomy, value, module):
    return (anatomy.label == value).sum() * np.prod(module.FIELD_OF_VIEW) / anatomy.label.size / 1000


@pytest.fixture(scope="module")
def abdomens():
    axes = grid_axes(renal_anatomy.CENTRE, renal_anatomy.FIELD_OF_VIEW, (96, 80, 32))
    return [renal_anatomy.renal_anatomy(axes, np.random.default_rng(seed)) for seed in range(8)]


def test_organ_volumes_are_those_of_adults(abdomens):
    limits = {1: (80, 260), 2: (80, 260), 3: (700, 2000), 4: (60, 350)}
    for value, (low, high) in limits.items():
        volumes = [labelled_ml(abdomen, value, renal_anatomy) for abdomen in abdomens]
        assert low < min(volumes) and max(volumes) < high
        assert np.std(volumes) / np.mean(volumes) > 0.05  # subjects differ


def test_the_liver_lies_on_the_right_and_the_spleen_on_the_left(abdomens):
    for abdomen in abdomens:
        x = abdomen.axes[0][:, None, None] + np.zeros(abdomen.label.shape)  # RAS+: right is positive
        middle = {name: x[abdomen.label == value].mean() for name, value in renal_anatomy.LABELS.items()}
        assert middle["liver"] > 20 and middle["right_kidney"] > 20
        assert middle["spleen"] < -20 and middle["left_kidney"] < -20


def test_organs_hold_their_own_tissue_and_nothing_lies_outside_the_body(abdomens):
    owners = {1: {"renal_cortex", "renal_medulla"}, 2: {"renal_cortex", "renal_medulla"}, 4: {"spleen"}}
    owners[3] = {"liver", "blood"}
    names = list(TISSUE_INDEX)
    for abdomen in abdomens:
        for value, tissues in owners.items():
            assert {names[index] for index in np.unique(abdomen.tissue[abdomen.label == value])} == tissues
        # On every line from left to right through the body, the first and last tissue is skin fat.
        first = np.argmax(abdomen.tissue > 0, axis=0)
        body = abdomen.tissue.any(axis=0) & (first > 0)
        outermost = np.take_along_axis(abdomen.tissue, first[None], axis=0)[0][body]
        assert (outermost == TISSUE_INDEX["adipose"]).mean() > 0.97


@pytest.fixture(scope="module")
def brains():
    axes = grid_axes(brain_anatomy.CENTRE, brain_anatomy.FIELD_OF_VIEW, (80, 96, 52))
    return [brain_anatomy.brain_anatomy(axes, np.random.default_rng(seed)) for seed in range(5)]


def test_brain_volumes_and_tumour(brains):
    names = list(TISSUE_INDEX)
    for brain in brains:
        assert 1.2e3 < np.count_nonzero(brain.tissue) * 2 * 2 * 3 / 1000 < 2.4e3  # mL, with CSF
        for name, value in brain_anatomy.LABELS.items():
            assert {names[index] for index in np.unique(brain.tissue[brain.label == value])} <= {name}
        whole = (brain.label > 0).sum() * 12 / 1000
        assert 8 < whole < 400
        assert (brain.label == 3).any() and (brain.label == 2).any()
    assert len({tuple(np.argwhere(brain.label > 0).mean(axis=0).round()) for brain in brains}) == len(brains)


def test_necrosis_lies_inside_the_rim(brains):
    from scipy import ndimage

    for brain in brains:
        core = brain.label == 1
        around = ndimage.binary_dilation(core) & ~core
        assert (brain.label[around] == 3).mean() > 0.9 if core.any() else True
