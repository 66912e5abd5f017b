"""Health of representations: values at both extremes, between them, and when nothing can be compared."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from losses.health import feature_spread, masked_mean, uniformity, view_health
from utils.checks import InputError


def on_sphere(vector):
    vector = np.asarray(vector, "float64")
    length = math.sqrt(sum(float(x) ** 2 for x in vector))
    return vector / length if length else vector


def squared_distance(a, b):
    return sum(float(x) ** 2 for x in on_sphere(a) - on_sphere(b))


def counted_sets(vectors, is_counted):
    """Yield the vectors that count, set by set."""
    vectors = np.asarray(vectors, "float64")
    is_counted = np.ones(vectors.shape[:-1], bool) if is_counted is None else is_counted
    sets, masks = vectors.reshape(-1, *vectors.shape[-2:]), is_counted.reshape(-1, vectors.shape[-2])
    return [one[mask] for one, mask in zip(sets, masks, strict=True)]


def uniformity_by_hand(vectors, is_counted=None):
    values = []
    for one in counted_sets(vectors, is_counted):
        potentials = [math.exp(-2 * squared_distance(a, b)) for i, a in enumerate(one) for b in one[:i]]
        if potentials:
            values.append(math.log(sum(potentials) / len(potentials)))
    return sum(values) / len(values) if values else 0.0


def spread_by_hand(vectors, is_counted=None):
    values = []
    for one in counted_sets(vectors, is_counted):
        if len(one) < 2:
            continue
        deviations = []
        for feature in np.stack([on_sphere(vector) for vector in one]).T:
            mean = sum(feature) / len(feature)
            deviations.append(math.sqrt(sum((value - mean) ** 2 for value in feature) / len(feature)))
        values.append(sum(deviations) / len(deviations) * math.sqrt(len(deviations)))
    return sum(values) / len(values) if values else 0.0


def views_by_hand(view_a, view_b, is_counted=None):
    pairs = zip(counted_sets(view_a, is_counted), counted_sets(view_b, is_counted), strict=True)
    distances = [squared_distance(a, b) for one, other in pairs for a, b in zip(one, other, strict=True)]
    both = np.stack([view_a, view_b])
    masks = None if is_counted is None else np.stack([is_counted, is_counted])
    return {
        "alignment": sum(distances) / len(distances) if distances else 0.0,
        "uniformity": uniformity_by_hand(both, masks),
        "feature_spread": spread_by_hand(both, masks),
    }


def draw(seed, *shape):
    generator = np.random.default_rng(seed)
    vectors = generator.normal(generator.normal(size=shape[-1]), 1, shape)
    return vectors.astype("float32"), generator.random(shape[:-1]) < 0.6


def numbers(values):
    return {name: float(value) for name, value in values.items()}


@pytest.mark.parametrize("shape", [(6, 4), (3, 6, 4), (2, 3, 5, 8), (2, 1, 4), (4, 2, 1)])
@pytest.mark.parametrize("some", [False, True])
def test_values_equal_loops(shape, some):
    vectors, mask = draw(len(shape), *shape)
    is_counted = mask if some else None
    assert float(uniformity(vectors, is_counted)) == pytest.approx(uniformity_by_hand(vectors, is_counted), abs=1e-5)
    assert float(feature_spread(vectors, is_counted)) == pytest.approx(spread_by_hand(vectors, is_counted), abs=1e-5)
    others = draw(100, *shape)[0]
    found = view_health(vectors, others, is_counted)
    assert numbers(found) == pytest.approx(views_by_hand(vectors, others, is_counted), abs=1e-5)
    assert all(ops.dtype(value) == "float32" and ops.shape(value) == () for value in found.values())


def test_a_mask_leaves_what_is_not_counted_out():
    vectors, _ = draw(0, 2, 6, 4)
    is_counted = np.arange(6) < 4
    spoiled = vectors.copy()
    spoiled[:, 4:] = 1e6
    expected = numbers(view_health(*vectors[:, :4]))
    assert numbers(view_health(*spoiled, is_counted)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("features", [64, 128])
def test_directions_without_preference(features):
    vectors = np.random.default_rng(0).normal(size=(2, 2000, features)).astype("float32")
    found = numbers(view_health(*vectors))
    assert found["feature_spread"] == pytest.approx(1, abs=0.01)
    assert found["alignment"] == pytest.approx(2, abs=0.02)
    # E exp(4 s - 4) with s close to a Gaussian of variance 1 / F
    assert found["uniformity"] == pytest.approx(-4 + 8 / features, abs=0.01)


def test_collapse_to_one_direction_has_neither_distance_nor_spread():
    vectors = np.random.default_rng(0).uniform(0.1, 10, (2, 50, 1)) * np.random.default_rng(1).normal(size=64)
    assert numbers(view_health(*vectors.astype("float32"))) == pytest.approx(
        {"alignment": 0, "uniformity": 0, "feature_spread": 0}, abs=1e-5
    )


def test_opposite_vectors_are_the_lower_end():
    assert float(uniformity(np.array([[1.0, 1], [-2, -2]], "float32"))) == pytest.approx(-8, abs=1e-5)


def test_collapse_to_a_line_is_seen_by_uniformity_only():
    line = np.random.default_rng(0).normal(size=64).astype("float32")
    vectors = np.resize([1.0, -1.0], 100)[:, None].astype("float32") * line
    assert float(feature_spread(vectors)) > 0.5
    assert float(uniformity(vectors)) > -0.8  # half of the pairs coincide: log(1 / 2)


@pytest.mark.parametrize("shape", [(1, 4), (3, 1, 4)])
def test_a_batch_of_one_has_nothing_to_differ_from(shape):
    view_a, view_b = draw(0, 2, *shape)[0]
    found = numbers(view_health(view_a, view_b))
    assert found["uniformity"] == found["feature_spread"] == 0
    assert found["alignment"] == pytest.approx(views_by_hand(view_a, view_b)["alignment"], abs=1e-5)


def test_nothing_counted_is_zero():
    view_a, view_b = draw(0, 2, 3, 5, 4)[0]
    assert set(numbers(view_health(view_a, view_b, np.zeros((3, 5), bool))).values()) == {0.0}


def test_zero_vectors_stay_at_the_origin():
    assert set(numbers(view_health(*np.zeros((2, 5, 4), "float32"))).values()) == {0.0}
    views, _ = draw(3, 2, 5, 4)
    views[0, 1] = views[:, 3] = 0
    assert numbers(view_health(*views)) == pytest.approx(views_by_hand(*views), abs=1e-5)


def test_half_precision_is_measured_in_float32():
    views = draw(4, 2, 5, 4)[0].astype("float16")
    found = view_health(*(ops.convert_to_tensor(view) for view in views))
    assert numbers(found) == pytest.approx(views_by_hand(*views), abs=1e-5)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_lengths_order_and_rotations_change_nothing_but_the_spread(seed):
    generator = np.random.default_rng(seed)
    views, (mask, _) = draw(seed, 2, 3, 7, 4)
    expected = numbers(view_health(*views, mask))
    lengths = generator.uniform(0.01, 100, (2, 3, 7, 1)).astype("float32")
    assert numbers(view_health(*(views * lengths), mask)) == pytest.approx(expected, abs=1e-4)
    order = generator.permutation(7)
    assert numbers(view_health(*views[:, :, order], mask[:, order])) == pytest.approx(expected, abs=1e-4)
    turn = np.linalg.qr(generator.normal(size=(4, 4)))[0].astype("float32")
    turned = numbers(view_health(*(views @ turn), mask))
    for name in ("alignment", "uniformity"):
        assert turned[name] == pytest.approx(expected[name], abs=1e-4)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(-6, 3))
def test_values_stay_in_their_range(seed, decades):
    views, (mask, _) = draw(seed, 2, 4, 6, 3)
    found = numbers(view_health(*(views + np.float32(10**decades)), mask))
    assert 0 <= found["alignment"] <= 4
    assert -8.001 <= found["uniformity"] <= 0
    assert 0 <= found["feature_spread"] <= 1 + 1e-6


def test_a_batch_of_unknown_size_compiles():
    """Keras traces validation with an unknown batch size: the set axis of global contrast, the first axis of CCL."""

    class Health(keras.Model):
        def __init__(self):
            super().__init__()
            self.uniformity = keras.metrics.Mean("uniformity")
            self.alignment = keras.metrics.Mean("alignment")

        def call(self, batch):
            return batch["global"]

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            found = view_health(x["global"], ops.flip(x["global"], axis=1))
            self.alignment.update_state(found["alignment"])
            self.uniformity.update_state(uniformity(x["local"], x["counted"]))
            return feature_spread(x["local"]) + found["feature_spread"]

    (vectors, _), (local, mask) = draw(0, 8, 4), draw(1, 8, 5, 4)
    model = Health()
    model.compile(jit_compile=keras.backend.backend() == "jax")
    batches = {"global": vectors, "local": local, "counted": mask}
    found = model.evaluate(batches, batch_size=4, verbose=0, return_dict=True)
    halves = [(vectors[half], local[half], mask[half]) for half in (slice(0, 4), slice(4, 8))]
    of_views = [views_by_hand(one, one[:, ::-1]) for one, _, _ in halves]
    expected = {
        "loss": np.mean([spread_by_hand(two) for _, two, _ in halves] + [v["feature_spread"] for v in of_views]) * 2,
        "alignment": np.mean([v["alignment"] for v in of_views]),
        "uniformity": np.mean([uniformity_by_hand(two, counted) for _, two, counted in halves]),
    }
    assert found == pytest.approx(expected, abs=1e-5)


def test_masked_mean_of_nothing_is_zero():
    values = np.array([[1.0, 2.0], [3.0, 5.0]])
    mask = np.array([[True, False], [False, False]])
    assert ops.convert_to_numpy(masked_mean(values, mask, axis=-1)).tolist() == [1, 0]
    assert float(masked_mean(values, ~mask)) == pytest.approx(10 / 3)


@pytest.mark.parametrize("shape", [(1, 4), (5, 3), (1, 5, 4), (4,)])
def test_shapes_that_do_not_fit_are_refused(shape):
    view = np.zeros((5, 4), "float32")
    with pytest.raises(InputError, match=r"view_b: shape .* expected \(5, 4\)"):
        view_health(view, np.zeros(shape, "float32"))
    with pytest.raises(InputError, match=r"is_counted: shape .* expected \(5,\)"):
        feature_spread(view, np.ones(shape, bool))
