"""Probes and silhouettes against plain float64 arithmetic and in cases with known results."""

import math
import types
import warnings

import numpy as np
import pandas
import pytest
from sklearn.metrics import balanced_accuracy_score, r2_score

from evaluation.probes.figures import draw_embeddings
from evaluation.probes.representations import (
    PENALTY,
    balanced_accuracy,
    by_subject,
    embed,
    probe_classes,
    probe_scores,
    probe_table,
    probe_values,
    r_squared,
    represent,
    silhouette,
    silhouette_scores,
)
from evaluation.report.figures import save_figure
from evaluation.report.tables import to_markdown, write_table


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        yield


def silhouette_by_hand(vectors, classes):
    """Rousseeuw's s(i) with 1 - cosine, averaged within classes and then over them."""

    def distance(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return 1 - dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    by_class = {value: [i for i, c in enumerate(classes) if c == value] for value in set(classes)}
    means = []
    for value, members in by_class.items():
        each = []
        for i in members:
            if len(members) == 1:
                each.append(0.0)
                continue
            own = sum(distance(vectors[i], vectors[j]) for j in members if j != i) / (len(members) - 1)
            others = [
                sum(distance(vectors[i], vectors[j]) for j in rest) / len(rest)
                for other, rest in by_class.items()
                if other != value
            ]
            each.append((min(others) - own) / max(own, min(others)))
        means.append(sum(each) / len(each))
    return sum(means) / len(means)


def ridge_by_hand(train, values, test):
    mean, sd = train.mean(0), train.std(0)
    x, z = (train - mean) / sd, (test - mean) / sd
    weights = np.linalg.solve(x.T @ x + PENALTY * np.eye(x.shape[1]), x.T @ (values - values.mean()))
    return values.mean() + z @ weights


def make_patches(generator, count=400, subjects=4, labels=3):
    """Make patches of which one feature increases with T1, one with the label, and one is noise."""
    table = pandas.DataFrame(
        {
            "subject": [f"s{number % subjects}" for number in range(count)],
            "label": generator.integers(0, labels, count),
            "constraint_class": generator.integers(1, 4, count),
            "T1": generator.uniform(300, 1500, count),
        }
    )
    features = np.column_stack([3 * table["T1"] + 40, 100 * table["label"], generator.normal(size=count)])
    return features + generator.normal(scale=[1, 1, 1], size=features.shape), table


class Doubling:
    """Stands in for a network: doubles its input and halves the size; records its batches."""

    def __init__(self):
        self.batches = []

    def predict_on_batch(self, batch):
        self.batches.append(len(batch))
        return 2 * batch[:, ::2, ::2]


@pytest.mark.parametrize("slices", [1, 4, 7])
def test_representations_are_patch_means_of_the_feature_map(slices):
    images, network = np.random.default_rng(0).normal(size=(slices, 8, 16, 3)).astype("float32"), Doubling()
    found = represent(network, images, 2, batch_size=4)
    assert found.shape == (slices, 8, 3) and set(network.batches) == {4}
    for index in np.ndindex(slices, 2, 4):
        slice_, y, x = index
        expected = 2 * images[slice_, 4 * y : 4 * y + 4 : 2, 4 * x : 4 * x + 4 : 2].mean(axis=(0, 1))
        np.testing.assert_allclose(found[slice_, 4 * y + x], expected, rtol=1e-4, atol=1e-6)


def test_representations_of_volumes_are_means_over_cubes():
    halving = types.SimpleNamespace(predict_on_batch=lambda batch: batch[:, ::2, ::2, ::2])
    images = np.random.default_rng(0).normal(size=(3, 8, 4, 12, 2)).astype("float32")
    found = represent(halving, images, 2, batch_size=2)
    assert found.shape == (3, 2 * 1 * 3, 2)
    for crop, y, z in np.ndindex(3, 2, 3):
        expected = images[crop, 4 * y : 4 * y + 4 : 2, 0:4:2, 4 * z : 4 * z + 4 : 2].mean(axis=(0, 1, 2))
        np.testing.assert_allclose(found[crop, 3 * y + z], expected, rtol=1e-4, atol=1e-6)


def test_without_labels_there_are_neither_probes_nor_silhouettes_of_them():
    generator = np.random.default_rng(0)
    features, patches = make_patches(generator)
    patches = patches.drop(columns="label")
    assert [score["target"] for score in probe_scores(features, features, patches, patches, ["T1"])] == ["T1"]
    (score,) = silhouette_scores(features, patches, np.arange(400), seed=0)
    assert score["target"] == "constraint class"


def test_the_figure_of_patches_without_labels_shows_contrasts():
    generator = np.random.default_rng(0)
    patches = make_patches(generator, count=60)[1].drop(columns=["label", "T1"]).assign(**{"contrast t2": range(60)})
    figure = draw_embeddings({"random": generator.normal(size=(60, 2))}, patches, [])
    axes = np.array(figure.axes[:4]).reshape(-1, 2)
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["by constraint class", "by contrast t2"]
    np.testing.assert_array_equal(axes[1, 0].collections[0].get_array(), patches["contrast t2"])
    assert [axis.get_ylabel() for axis in axes[1, 1].child_axes] == ["scaled, 0 to 1"]


@pytest.mark.parametrize("seed", range(3))
def test_the_probe_is_ridge_regression_on_standardised_features(seed):
    generator = np.random.default_rng(seed)
    train = generator.normal(size=(30, 4)) * [1, 1e-3, 1e3, 1] + 5
    test, values = generator.normal(size=(10, 4)) * [1, 1e-3, 1e3, 1] + 5, generator.normal(size=30) * 100 + 900
    np.testing.assert_allclose(probe_values(train, values, test), ridge_by_hand(train, values, test), rtol=1e-9)


def test_a_constant_feature_does_no_harm():
    generator = np.random.default_rng(0)
    train, values = generator.normal(size=(50, 2)), generator.normal(size=50)
    dead = [np.column_stack([part, np.full(len(part), 0.0)]) for part in (train, train[:5])]
    np.testing.assert_allclose(probe_values(dead[0], values, dead[1]), probe_values(train, values, train[:5]))


def test_a_rare_class_weighs_as_much_as_a_common_one():
    """Classes overlap; without weights, the rare one would hardly ever be predicted."""
    generator = np.random.default_rng(0)
    classes = np.array([0] * 1900 + [1] * 100)
    features = generator.normal(size=(2000, 1)) + 2 * classes[:, None]
    found = probe_classes(features, classes, features)
    assert np.mean(found[classes == 1] == 1) == pytest.approx(0.84, abs=0.06)  # the boundary lies in the middle
    assert balanced_accuracy(classes, found) == pytest.approx(0.84, abs=0.03)


def test_r_squared_and_balanced_accuracy_are_those_of_the_library():
    generator = np.random.default_rng(0)
    true, found = generator.normal(size=50), generator.normal(size=50)
    assert r_squared(true, found) == pytest.approx(r2_score(true, found)) and r_squared(true, found) < 0
    assert r_squared(true, true) == 1 and r_squared(true, np.full(50, true.mean())) == pytest.approx(0)
    assert math.isnan(r_squared(np.ones(5), true[:5]))
    true, found = generator.integers(0, 4, 80), generator.integers(0, 4, 80)
    assert balanced_accuracy(true, found) == pytest.approx(balanced_accuracy_score(true, found))
    assert balanced_accuracy(np.array([1, 1]), np.array([1, 3])) == 0.5  # a class that occurs only in the prediction


@pytest.mark.parametrize("seed", range(4))
def test_silhouette_is_that_of_a_loop(seed):
    generator = np.random.default_rng(seed)
    vectors, classes = generator.normal(size=(25, 3)) + 1, generator.integers(0, 3, 25)
    classes[0] = 7  # the only one in its class
    expected = silhouette_by_hand(vectors.tolist(), classes.tolist())
    assert silhouette(vectors, classes) == pytest.approx(expected, abs=1e-9)
    scaled = vectors * generator.uniform(0.1, 10, (25, 1))
    assert silhouette(scaled, 20 - classes) == pytest.approx(expected, abs=1e-9)


def test_silhouette_needs_two_classes_and_a_pair():
    vectors = np.eye(4)[[0, 0, 1, 1]]
    assert silhouette(vectors, np.array([1, 1, 2, 2])) == pytest.approx(1)
    assert silhouette(vectors, np.array([1, 2, 1, 2])) < 0
    assert math.isnan(silhouette(vectors, np.ones(4))) and math.isnan(silhouette(vectors, np.arange(4)))
    assert math.isnan(silhouette(vectors[:0], np.arange(0)))


def test_scores_of_all_patches_and_of_each_subject():
    subjects, values = np.array(["b", "a", "b", "a", "c"]), np.array([1.0, 2, 3, 4, 9])
    found = by_subject(np.mean, subjects, values)
    assert found["value"] == 3.8 and found["patches"] == 5
    np.testing.assert_array_equal(found["each"], [3, 2, 9])


def test_probes_find_what_is_there_and_nothing_else():
    generator = np.random.default_rng(0)
    (train, known), (test, patches) = make_patches(generator), make_patches(generator)
    scores = {score["target"]: score for score in probe_scores(train, test, known, patches, ["T1"])}
    assert scores["T1"]["value"] > 0.999 and scores["label"]["value"] == 1
    assert len(scores["T1"]["each"]) == 4
    noise = {score["target"]: score for score in probe_scores(train[:, 2:], test[:, 2:], known, patches, ["T1"])}
    assert abs(noise["T1"]["value"]) < 0.05 and noise["label"]["value"] == pytest.approx(1 / 3, abs=0.06)
    only_labels = [score["target"] for score in probe_scores(train, test, known, patches, [])]
    assert only_labels == ["label"]
    assert not [*probe_scores(train, test, known.assign(label=0), patches, [])]


def test_probes_are_fitted_on_training_patches_only():
    """Features have the opposite meaning in test subjects: a probe fitted on them would not be wrong."""
    generator = np.random.default_rng(0)
    (train, known), (test, patches) = make_patches(generator), make_patches(generator)
    (score, _) = probe_scores(train, 2 * train.mean(0) - test, known, patches, ["T1"])
    assert score["value"] < -2


def test_silhouettes_of_labels_leave_the_rest_out_unless_there_is_one_label():
    generator = np.random.default_rng(0)
    features, patches = make_patches(generator)
    labels, drawn = patches["label"].to_numpy(), np.arange(0, 400, 2)
    first, _ = silhouette_scores(features, patches, drawn, seed=0)
    labelled = drawn[labels[drawn] > 0]
    assert first["value"] == pytest.approx(silhouette(features[labelled], labels[labelled]))
    assert first["patches"] == len(labelled) < len(drawn)
    single = patches.assign(label=labels > 0).astype({"label": int})
    first, _ = silhouette_scores(features, single, drawn, seed=0)
    assert first["value"] == pytest.approx(silhouette(features[drawn], single["label"].to_numpy()[drawn]))


def test_constraint_classes_are_compared_within_subjects_only():
    """Class numbers differ in meaning between subjects, so renumbering must not matter."""
    features, patches = make_patches(np.random.default_rng(0))
    shift = patches["subject"].str[1].astype(int)
    renumbered = patches.assign(constraint_class=(patches["constraint_class"] + shift) % 5)
    (_, before), (_, after) = (silhouette_scores(features, p, np.arange(400), seed=0) for p in (patches, renumbered))
    np.testing.assert_allclose(before["each"], after["each"])
    places = patches["subject"] == "s2"
    expected = silhouette(features[places], patches["constraint_class"].to_numpy()[places])
    assert before["each"][2] == pytest.approx(expected) and before["value"] == pytest.approx(before["each"].mean())


def make_rows():
    about = {"pretrained": "-", "features": 4, "measure": "R²", "target": "T1", "patches": 50}
    rows = [about | {"representation": "intensity", "draw": 0, "value": 0.5, "each": np.array([0.4, 0.8])}]
    for draw, each in enumerate(([0.1, 0.5], [0.3, np.nan], [0.2, 0.1])):
        rows.append(about | {"representation": "random", "draw": draw, "value": 0.1 * draw, "each": np.array(each)})
    one = {"measure": "silhouette", "target": "label", "value": -0.25, "each": np.array([])}
    return [*rows, about | one | {"representation": "random", "draw": 0}]


def test_the_table_averages_draws_and_names_their_range(tmp_path):
    table = probe_table(make_rows(), "Simulated scans. What the numbers are.")
    text = table.text.set_index("Representation")
    assert text.loc["intensity", "R² T1"] == "0.500 (0.600 ± 0.283)"
    assert text.loc["random", "R² T1"] == "0.100 (0.200 ± -) [0.000, 0.200]"  # one subject has no value in one draw
    assert text.loc["random", "silhouette label"] == "-0.250" and text.loc["intensity", "silhouette label"] == "-"
    numbers = table.numbers
    assert numbers["subjects"].tolist() == [2, 2, 1, 2, 0] and numbers["subject_mean"][0] == pytest.approx(0.6)
    write_table(table, tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".csv", ".md", ".tex"}
    assert to_markdown(table).startswith("Simulated scans.") and "each" not in numbers


def test_the_plane_keeps_groups_apart_and_is_fixed_by_the_seed():
    generator = np.random.default_rng(0)
    groups = np.repeat([[1.0, 0, 0], [0, 1, 0]], 30, axis=0) + 0.05 * generator.normal(size=(60, 3))
    points = embed(groups, 3)
    centres = points[:30].mean(0), points[30:].mean(0)
    nearest = [np.argmin([np.linalg.norm(point - centre) for centre in centres]) for point in points]
    assert nearest == [0] * 30 + [1] * 30
    np.testing.assert_array_equal(points, embed(groups, 3))
    assert embed(groups[:12], 0).shape == (12, 2)


def test_without_labels_the_keys_take_no_more_room_than_they_need():
    generator = np.random.default_rng(0)
    patches = make_patches(generator, count=60)[1].drop(columns="label")
    figure = draw_embeddings({"random": generator.normal(size=(60, 2))}, patches, [])
    figure.draw_without_rendering()
    assert 0.9 < figure.get_tightbbox().x1 / figure.get_figwidth() <= 1


@pytest.mark.parametrize("has_truth", [True, False])
def test_the_figure_colours_the_same_patches_in_every_panel(has_truth, tmp_path):
    generator = np.random.default_rng(0)
    _, patches = make_patches(generator, count=60)
    patches = patches.assign(T2=patches["T1"] / 10) if has_truth else patches.drop(columns="T1")
    points = {init: generator.normal(size=(60, 2)) for init in ("random", "constrained")}
    figure = draw_embeddings(points, patches, ["liver", "spleen"], "Simulated scans. t-SNE")
    axes = np.array(figure.axes[: 3 * (4 if has_truth else 2)]).reshape(-1, 3)
    assert [axis.get_title() for axis in axes[0]] == ["random", "constrained", ""]
    rows = ["by constraint class", "by label", *(["by true T2", "by true T1"] if has_truth else [])]
    assert [axis.get_ylabel() for axis in axes[:, 0]] == rows
    for column, init in enumerate(points):
        shown = axes[0, column].collections[0]
        np.testing.assert_allclose(shown.get_offsets(), points[init])
        np.testing.assert_array_equal(shown.get_array(), patches["constraint_class"])
        for number, drawn in enumerate(axes[1, column].collections):
            np.testing.assert_allclose(drawn.get_offsets(), points[init][patches["label"] == number])
    assert [t.get_text() for t in axes[1, 2].get_legend().get_texts()] == ["other foreground", "liver", "spleen"]
    if has_truth:
        labels = {axis.get_ylabel() for key in axes[:, 2] for axis in key.child_axes}
        assert labels == {"class, dark to bright", "T2 [ms]", "T1 [ms]"}
    save_figure(figure, tmp_path, "tsne")
    assert (tmp_path / "tsne.png").stat().st_size > 1000 and (tmp_path / "tsne.pdf").exists()
