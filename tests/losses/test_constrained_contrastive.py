import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from losses.constrained_contrastive import anchor_health, constrained_contrastive_loss
from tests.gradients import central_differences_of_slices, gradient
from tests.reference import constrained_contrastive_by_hand, is_near, nearest_of
from utils.checks import InputError

GRID = 3.0 * np.indices((4, 5)).reshape(2, -1).T.astype("float32")  # positions among 20 patches


def slices(seed=0, batch=3, patches=20, features=3, anchors=6, classes=3):
    generator = np.random.default_rng(seed)
    return (
        generator.normal(size=(batch, patches, features)).astype("float32"),
        generator.integers(0, classes, (batch, patches)),
        np.stack([generator.permutation(patches)[:anchors] for _ in range(batch)]),
    )


def loss(*arguments, **options):
    return ops.convert_to_numpy(constrained_contrastive_loss(*arguments, **options))


def padded_anchors():
    representations, classes, anchors = slices(5)
    anchors[0, 2:] = -1
    anchors[1] = -1
    return representations, classes, anchors


def one_patch_of_its_class():
    representations, classes, anchors = slices(6)
    classes[:, :] = 1
    classes[np.arange(3), anchors[:, 0]] = 2
    return representations, classes, anchors


def background_left_out():
    representations, classes, anchors = slices(10)
    left_out = np.random.default_rng(1).random(classes.shape) < 0.5
    left_out[np.arange(3)[:, None], anchors] = False
    left_out[2] = ~np.isin(np.arange(20), anchors[2])  # fewer patches than requested
    return representations, np.where(left_out, -1, classes), anchors


def only_anchor_left():
    representations, classes, anchors = slices(11, anchors=1)
    return representations, np.where(np.arange(20) == anchors, classes, -1), anchors


def zero_vector():
    representations, classes, anchors = slices(7)
    representations[np.arange(3), anchors[:, 0]] = 0
    representations[0, (anchors[0, 0] + 1) % 20] = 0
    return representations, classes, anchors


CASES = {
    "seed 1": (slices(1), {"nearest_patches": 7}),
    "seed 2": (slices(2), {"nearest_patches": 7}),
    "all patches": (slices(3), {"nearest_patches": 19}),
    "more than all patches": (slices(3), {"nearest_patches": 100}),
    "one nearest patch": (slices(4), {"nearest_patches": 1}),
    "one class: no negative": (slices(5, classes=1), {"nearest_patches": 7}),
    "no positive but itself": (one_patch_of_its_class(), {"nearest_patches": 7}),
    "every patch its own class": ((slices(8)[0], np.tile(np.arange(20), (3, 1)), slices(8)[2]), {"nearest_patches": 7}),
    "fewer anchors, none": (padded_anchors(), {"nearest_patches": 7}),
    "background left out": (background_left_out(), {"nearest_patches": 7}),
    "nothing left but the anchor": (only_anchor_left(), {"nearest_patches": 7}),
    "a number for each slice": (slices(12), {"nearest_patches": np.array([1, 7, 13]), "most_nearest": 13}),
    "numbers without a largest": (slices(12), {"nearest_patches": np.array([3, 19, 100])}),
    "only the anchor, all, one": (slices(13), {"nearest_patches": np.array([0, 19, 1]), "most_nearest": 19}),
    "a number each, anchors missing": (padded_anchors(), {"nearest_patches": np.array([4, 2, 9]), "most_nearest": 9}),
    "a number each, no background": (background_left_out(), {"nearest_patches": np.array([4, 9, 9])}),
    "positives within a distance": (slices(15), {"nearest_patches": 15, "positions": GRID, "positive_within": 6.5}),
    "at the limit": (slices(16, classes=1), {"nearest_patches": 19, "positions": 0.7 * GRID, "positive_within": 2.1}),
    "none within": (slices(17), {"nearest_patches": 15, "positions": GRID, "positive_within": 0.5}),
    "all within": (slices(18), {"nearest_patches": 15, "positions": GRID, "positive_within": 99.0}),
    "a number each, within a distance": (
        background_left_out(),
        {"nearest_patches": np.array([4, 12, 9]), "positions": GRID, "positive_within": 7.0},
    ),
    "small temperature": (slices(9), {"nearest_patches": 7, "temperature": 0.01}),
    "large temperature": (slices(9), {"nearest_patches": 7, "temperature": 10.0}),
}


def by_hand(*arrays, most_nearest=None, **options):
    return constrained_contrastive_by_hand(*arrays, **options)


@pytest.mark.parametrize("anchor_is_positive", [True, False])
@pytest.mark.parametrize("comparison", ["pairwise", "setwise"])
@pytest.mark.parametrize("case", CASES)
def test_value_equals_the_reference(case, comparison, anchor_is_positive):
    arrays, options = CASES[case]
    options = {**options, "comparison": comparison, "anchor_is_positive": anchor_is_positive}
    expected = by_hand(*arrays, **options)
    np.testing.assert_allclose(loss(*arrays, **options), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("comparison", ["pairwise", "setwise"])
@pytest.mark.parametrize("case", CASES)
def test_gradient_equals_central_differences_of_the_reference(case, comparison):
    (representations, classes, anchors), options = CASES[case]
    options = {**options, "comparison": comparison}
    found = gradient(lambda x: constrained_contrastive_loss(x, classes, anchors, **options), representations)
    expected = central_differences_of_slices(lambda x: by_hand(x, classes, anchors, **options), representations)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 / min(1, options.get("temperature", 1)))


def test_equal_numbers_for_all_slices_are_one_number():
    arrays = slices(14)
    for most in (None, 7, 12):
        found = loss(*arrays, nearest_patches=np.array([7, 7, 7]), most_nearest=most)
        np.testing.assert_array_equal(found, loss(*arrays, nearest_patches=7))
    cut = loss(*arrays, nearest_patches=np.array([7, 12, 19]), most_nearest=7)
    np.testing.assert_array_equal(cut, loss(*arrays, nearest_patches=7))


@pytest.mark.parametrize("comparison", ["pairwise", "setwise"])
def test_gradient_without_the_anchor_among_its_positives(comparison):
    representations, classes, anchors = one_patch_of_its_class()
    options = {"nearest_patches": 7, "comparison": comparison, "anchor_is_positive": False}
    found = gradient(lambda x: constrained_contrastive_loss(x, classes, anchors, **options), representations)
    expected = central_differences_of_slices(
        lambda x: constrained_contrastive_by_hand(x, classes, anchors, **options), representations
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_defaults_are_those_of_the_authors():
    arrays = slices(10, batch=1, patches=130, anchors=4)
    np.testing.assert_allclose(loss(*arrays), constrained_contrastive_by_hand(*arrays), rtol=1e-5)


def test_a_zero_vector_gives_neither_nan_nor_gradient():
    representations, classes, anchors = zero_vector()
    expected = constrained_contrastive_by_hand(representations, classes, anchors, nearest_patches=19)
    np.testing.assert_allclose(loss(representations, classes, anchors, nearest_patches=19), expected, rtol=1e-5)
    for temperature in (0.01, 10.0):
        found = gradient(
            lambda x, t=temperature: constrained_contrastive_loss(x, classes, anchors, temperature=t), representations
        )
        assert np.isfinite(found).all()
        assert not found[np.arange(3), anchors[:, 0]].any()


def test_an_anchor_among_identical_patches_is_never_lost():
    representations = np.ones((1, 30, 4), "float32")
    classes = np.zeros((1, 30), int)
    classes[0, 29] = 1  # only its own class: the nearest three of the others depend on the processor's rounding
    found = loss(representations, classes, np.array([[29]]), nearest_patches=3)
    # The anchor against three patches of another class, as similar as itself; 0 if the anchor were lost.
    np.testing.assert_allclose(found, [np.log(4)], rtol=1e-6)


def test_half_precision_representations_are_compared_in_float32():
    representations, classes, anchors = slices(11)
    half = representations.astype("float16")
    found = constrained_contrastive_loss(ops.convert_to_tensor(half), classes, anchors, nearest_patches=7)
    assert ops.dtype(found) == "float32"
    expected = constrained_contrastive_by_hand(half, classes, anchors, nearest_patches=7)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-5)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from(["pairwise", "setwise"]))
def test_loss_ignores_patch_order_class_names_and_lengths(seed, comparison):
    representations, classes, anchors = slices(seed)
    options = {"nearest_patches": 7, "comparison": comparison}
    expected = loss(representations, classes, anchors, **options)
    generator = np.random.default_rng(seed)
    order = generator.permutation(20)
    found = loss(representations[:, order], classes[:, order], np.argsort(order)[anchors], **options)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    names = generator.permutation(50)[:3]
    np.testing.assert_allclose(loss(representations, names[classes], anchors, **options), expected, rtol=1e-6)
    lengths = generator.uniform(0.01, 100, (3, 20, 1)).astype("float32")
    np.testing.assert_allclose(
        loss(representations * lengths, classes, anchors, **options), expected, rtol=1e-4, atol=1e-5
    )


def anchor_health_by_hand(representations, classes, anchors, nearest_patches, most_nearest=None, **positions):
    positives, negatives, alignments, uniformities = [], [], [], []
    numbers = np.broadcast_to(nearest_patches, len(anchors))
    parts = zip(np.asarray(representations, "float64"), classes, anchors, numbers, strict=True)
    for vectors, own_classes, drawn, nearest in parts:
        drawn = drawn[drawn >= 0]
        for anchor in drawn:
            near = nearest_of(anchor, vectors, nearest, own_classes)[1:]
            same = [(patch, s) for patch, s in near if own_classes[patch] == own_classes[anchor]]
            agreeing = [s for patch, s in same if not positions or is_near(anchor, patch, **positions)]
            positives.append(len(agreeing))
            negatives.append(len(near) - len(same))
            if vectors[anchor].any():
                alignments += [2 - 2 * s for s in agreeing]
        unit = [vector / (np.linalg.norm(vector) or 1) for vector in vectors[drawn]]
        potentials = [math.exp(-2 * sum((a - b) ** 2)) for i, a in enumerate(unit) for b in unit[:i]]
        if potentials:
            uniformities.append(math.log(sum(potentials) / len(potentials)))
    return {
        "share_without_positive": np.mean(np.array(positives) == 0),
        "share_without_negative": np.mean(np.array(negatives) == 0),
        "mean_positives": np.mean(positives),
        "alignment": np.mean(alignments) if alignments else 0,
        "uniformity": np.mean(uniformities) if uniformities else 0,
    }


HEALTH_CASES = {name: case for name, case in CASES.items() if "temperature" not in name}
HEALTH_CASES["zero vectors"] = (zero_vector(), {"nearest_patches": 19})


@pytest.mark.parametrize("case", HEALTH_CASES)
def test_anchor_health_equals_a_loop(case):
    arrays, options = HEALTH_CASES[case]
    found = anchor_health(*arrays, **options)
    expected = anchor_health_by_hand(*arrays, **options)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, abs=1e-5)
    assert all(ops.dtype(value) == "float32" for value in found.values())


def test_anchor_health_of_a_batch_without_anchors_is_zero():
    representations, classes, anchors = slices(0)
    found = anchor_health(representations, classes, np.full_like(anchors, -1))
    assert all(float(value) == 0 for value in found.values())


def test_anchor_health_of_a_collapsed_network():
    """All in one direction, without distances. A dead network with all zeros must not look better."""
    _, classes, anchors = slices(0)
    for representations in (np.full((3, 20, 5), 0.7, "float32"), np.zeros((3, 20, 5), "float32")):
        found = anchor_health(representations, classes, anchors, nearest_patches=7)
        assert float(found["alignment"]) == pytest.approx(0, abs=1e-6)
        assert float(found["uniformity"]) == pytest.approx(0, abs=1e-5)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_anchor_health_ignores_patch_order_class_names_and_lengths(seed):
    representations, classes, anchors = slices(seed)
    generator = np.random.default_rng(seed)
    order, names = generator.permutation(20), generator.permutation(50)[:3]
    lengths = generator.uniform(0.01, 100, (3, 20, 1)).astype("float32")
    shuffled = (representations * lengths)[:, order], names[classes][:, order], np.argsort(order)[anchors]
    expected = anchor_health(representations, classes, anchors, nearest_patches=7)
    found = anchor_health(*shuffled, nearest_patches=7)
    assert {k: float(v) for k, v in found.items()} == pytest.approx(
        {k: float(v) for k, v in expected.items()}, abs=1e-4
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"comparison": "pairwize"}, "choose 'pairwise' or 'setwise'"),
        ({"temperature": 0}, "must be positive"),
        ({"nearest_patches": 0}, "at least 1"),
        ({"nearest_patches": np.array([1, 2, 3]), "most_nearest": 0}, "at least 1"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        constrained_contrastive_loss(*slices(0), **change)


def test_shapes_that_do_not_fit_are_refused():
    representations, classes, anchors = slices(0)
    with pytest.raises(InputError, match="patch_classes: axis P"):
        constrained_contrastive_loss(representations, classes[:, :-1], anchors)
    with pytest.raises(InputError, match="anchors: axis B"):
        constrained_contrastive_loss(representations, classes, anchors[:2])
    with pytest.raises(InputError, match="positions: axis P"):
        constrained_contrastive_loss(representations, classes, anchors, positions=GRID[:-1], positive_within=3)
    with pytest.raises(InputError, match="nearest_patches: axis B"):
        constrained_contrastive_loss(representations, classes, anchors, nearest_patches=np.array([7, 7]))
    with pytest.raises(InputError, match="representations: shape"):
        constrained_contrastive_loss(representations[0], classes, anchors)
