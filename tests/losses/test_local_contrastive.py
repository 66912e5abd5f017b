import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from losses.local_contrastive import draw_regions, local_contrastive_loss, region_contrast
from tests.gradients import central_differences_of_slices, gradient
from tests.reference import region_contrast_by_hand
from utils.checks import InputError


def maps(seed=0, size=(9, 10), features=3, batch=2):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(batch, *size, features)).astype("float32") for _ in "ab"]


def drawn(seed=0, size=(9, 10), batch=2, **options):
    return draw_regions(batch, size, np.random.default_rng(seed), **options)


def no_negative(seed):
    regions = drawn(seed, regions=4)
    return regions | {"is_negative": np.zeros_like(regions["is_negative"])}


def zero_region():
    pair, regions = maps(7), drawn(7, regions=5)
    row, column = regions["corners"][0, 0]
    pair[0][0, row : row + 3, column : column + 3] = 0
    return pair, regions


CASES = {
    "as in the paper": (maps(1, (13, 15)), drawn(1, (13, 15)), {}),
    "single pixels": (maps(2), drawn(2, region_size=1, regions=6), {"region_size": 1}),
    "fewer regions fit than asked for": (maps(3), drawn(3, regions=30), {}),
    "more negatives than regions": (maps(4), drawn(4, regions=4, negatives=50), {}),
    "no negative": (maps(5), no_negative(5), {}),
    "a volume": (maps(6, (5, 4, 6)), drawn(6, (5, 4, 6), region_size=2, regions=7), {"region_size": 2}),
    "a region of zeros": (*zero_region(), {}),
    "small temperature": (maps(8), drawn(8), {"temperature": 0.01}),
    "large temperature": (maps(8), drawn(8), {"temperature": 10.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_value_equals_the_reference(case):
    pair, regions, options = CASES[case]
    found = ops.convert_to_numpy(region_contrast(*pair, **regions, **options))
    expected = region_contrast_by_hand(*pair, **regions, **options)
    assert found.shape == (2,) and np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [name for name in CASES if name not in ("as in the paper", "a region of zeros")])
def test_gradient_equals_central_differences_of_the_reference(case):
    (map_a, map_b), regions, options = CASES[case]
    found = gradient(lambda x: region_contrast(x, map_b, **regions, **options), map_a)
    expected = central_differences_of_slices(lambda x: region_contrast_by_hand(x, map_b, **regions, **options), map_a)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_a_region_of_zeros_has_a_finite_gradient():
    (map_a, map_b), regions = zero_region()
    found = gradient(lambda x: region_contrast(x, map_b, **regions), map_a)
    row, column = regions["corners"][0, 0]
    assert np.isfinite(found).all() and not found[0, row : row + 3, column : column + 3].any()


def test_the_two_views_are_treated_alike():
    (map_a, map_b), regions, options = CASES["as in the paper"]
    one, two = (region_contrast(*pair, **regions, **options) for pair in ((map_a, map_b), (map_b, map_a)))
    np.testing.assert_allclose(ops.convert_to_numpy(one), ops.convert_to_numpy(two), rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3), order=st.permutations(range(13)))
def test_scaling_features_and_renumbering_regions_change_nothing(seed, scale, order):
    map_a, map_b = maps(seed, (12, 15))
    regions = drawn(seed, (12, 15))
    expected = ops.convert_to_numpy(region_contrast(map_a, map_b, **regions))
    order = np.array(order)
    renumbered = {
        "corners": regions["corners"][:, order],
        "is_negative": regions["is_negative"][:, order][:, :, order],
    }
    found = ops.convert_to_numpy(region_contrast(map_a * np.float32(scale), map_b, **renumbered))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(4, 20), st.integers(4, 20)),
    region_size=st.integers(1, 4),
    regions=st.integers(2, 15),
    negatives=st.integers(1, 15),
)
def test_regions_lie_inside_and_do_not_overlap(seed, size, region_size, regions, negatives):
    fitting = (size[0] // region_size) * (size[1] // region_size)
    options = {"region_size": region_size, "regions": regions, "negatives": negatives}
    if fitting < 2:
        with pytest.raises(InputError, match="fewer than two regions of edge"):
            drawn(seed, size, **options)
        return
    found = drawn(seed, size, **options)
    for corners, is_negative in zip(found["corners"], found["is_negative"], strict=True):
        present = corners[:, 0] >= 0
        assert present.sum() == min(regions, fitting)
        covered = np.zeros(size, int)
        for row, column in corners[present]:
            assert row + region_size <= size[0] and column + region_size <= size[1]
            covered[row : row + region_size, column : column + region_size] += 1
        assert covered.max() == 1
        expected = min(negatives, present.sum() - 1)
        assert (is_negative.sum(1) == np.where(present, expected, 0)).all()
        assert not is_negative.diagonal().any() and not is_negative[:, ~present].any()


def test_every_place_of_the_map_is_drawn_sometimes():
    corners = drawn(0, (8, 10), batch=400, regions=4)["corners"].reshape(-1, 2)
    covered = np.zeros((8, 10), bool)
    for row, column in corners:
        covered[row : row + 3, column : column + 3] = True
    assert covered.all()


def test_a_seed_draws_the_same_regions_and_another_seed_others():
    pair = maps(9, (15, 15))
    values = [ops.convert_to_numpy(local_contrastive_loss(*pair, seed=seed)) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(values[0], values[1])
    assert not np.allclose(values[0], values[2])
    expected = region_contrast_by_hand(*pair, **drawn(3, (15, 15)))
    np.testing.assert_allclose(values[0], expected, rtol=1e-5)


def test_agreeing_views_cost_less_than_shuffled_ones():
    map_a, map_b = maps(10, (15, 15), batch=3)
    noisy = map_a + 0.1 * map_b
    agreeing, strange = (np.mean(local_contrastive_loss(map_a, other, seed=0)) for other in (noisy, map_b))
    assert agreeing < 0.1 * strange


def test_impossible_arguments_are_refused():
    map_a, map_b = maps()
    with pytest.raises(InputError, match=r"must be equal, \(B, H, W"):
        local_contrastive_loss(map_a, map_b[:, :5], seed=0)
    with pytest.raises(InputError, match="temperature is 0; it must be positive"):
        local_contrastive_loss(map_a, map_b, seed=0, temperature=0)
    with pytest.raises(InputError, match="negatives is 0; at least 1"):
        local_contrastive_loss(map_a, map_b, seed=0, negatives=0)
    with pytest.raises(InputError, match=r"must be \(B, R, 2\) and \(B, R, R\)"):
        region_contrast(map_a, map_b, np.zeros((2, 4, 3), int), np.zeros((2, 4, 4), bool))
