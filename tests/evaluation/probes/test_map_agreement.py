"""Agreement of constraint maps: every measure against a slow version and in cases with known results."""

import itertools
import math
import warnings

import numpy as np
import pandas
import pytest

from evaluation.probes.map_agreement import (
    BY_TISSUE,
    SHIFTED,
    agreement_with_labels,
    agreement_with_truth,
    balanced_purity,
    best_dice,
    cross_table,
    explained_variance,
    mutual_information,
    purity,
    purity_gain,
    stability,
)
from evaluation.probes.map_figures import agreement_against_clusters
from evaluation.probes.map_tables import MEASURES, agreement_table, average_agreement, change_table, enough_clusters
from evaluation.report.tables import to_latex, write_table
from evaluation.scores.scores import MEAN


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("error", UserWarning)
        yield


def draw(seed, voxels=400, clusters=7, labels=4):
    """Draw classes that agree partly with the labels; class 3 and label 1 may be missing."""
    rng = np.random.default_rng(seed)
    reference = rng.choice([0, 2, 3] if seed == 2 else labels, voxels).astype(np.uint8)
    classes = np.where(rng.random(voxels) < 0.6, reference + 1, rng.integers(1, clusters + 1, voxels))
    classes[classes == 3] = 1
    return classes.astype(np.uint8), reference


def union_dice(classes, reference, label):
    """Return the best Dice over all unions of classes."""
    found, best = set(classes.tolist()), 0.0
    for size in range(1, len(found) + 1):
        for union in itertools.combinations(sorted(found), size):
            inside = [c in union for c in classes.tolist()]
            hits = sum(1 for i, r in zip(inside, reference.tolist(), strict=True) if i and r == label)
            best = max(best, 2 * hits / (sum(inside) + sum(1 for r in reference.tolist() if r == label)))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_counts_and_purities_by_hand(seed):
    classes, reference = draw(seed)
    table = cross_table(classes, reference, 5)
    present = sorted(set(classes.tolist()))
    for row, k in enumerate(present):
        for label in range(5):
            assert table[row, label] == sum(
                c == k and r == label for c, r in zip(classes.tolist(), reference.tolist(), strict=True)
            )
    assert table.shape == (len(present), 5)
    most = {k: max(range(5), key=lambda v, k=k: np.sum((classes == k) & (reference == v))) for k in present}
    right = [most[c] == r for c, r in zip(classes.tolist(), reference.tolist(), strict=True)]
    assert purity(table) == pytest.approx(sum(right) / len(right))
    floor = max(np.mean(reference == label) for label in range(5))
    assert purity_gain(table) == pytest.approx((sum(right) / len(right) - floor) / (1 - floor))


@pytest.mark.parametrize("seed", range(4))
def test_balanced_purity_is_the_best_balanced_accuracy_of_a_rule_from_class_to_label(seed):
    from sklearn.metrics import balanced_accuracy_score

    classes, reference = draw(seed, voxels=150, clusters=5)
    present = np.unique(classes)
    best = 0.0
    for rule in itertools.product(np.unique(reference), repeat=len(present)):
        guess = np.array(rule)[np.searchsorted(present, classes)]
        best = max(best, balanced_accuracy_score(reference, guess))
    labels = len(np.unique(reference))
    assert balanced_purity(cross_table(classes, reference, 4)) == pytest.approx((best - 1 / labels) / (1 - 1 / labels))


@pytest.mark.parametrize("seed", range(4))
def test_best_dice_against_all_unions(seed):
    classes, reference = draw(seed, clusters=6)
    table = cross_table(classes, reference, 5)
    for label in range(4):
        if (reference == label).any():
            assert best_dice(table, label) == pytest.approx(union_dice(classes, reference, label))
    assert math.isnan(best_dice(table, 4))


def test_best_dice_takes_a_class_that_is_mostly_something_else():
    """One label is the majority in no class; leaving its class out for that reason would score 0."""
    table = np.array([[60, 40], [100, 0]])
    assert best_dice(table, 1) == pytest.approx(2 * 40 / (100 + 40))


@pytest.mark.parametrize("seed", range(3))
def test_explained_variance_by_hand(seed):
    rng = np.random.default_rng(seed)
    classes = rng.integers(2, 6, 300).astype(np.uint8)
    values = (1000 + 10.0 * classes + rng.normal(0, 9, 300)).astype(np.float32)
    mean = sum(map(float, values)) / 300
    within = 0.0
    for k in set(classes.tolist()):
        part = [float(v) for v in values[classes == k]]
        within += sum((v - sum(part) / len(part)) ** 2 for v in part)
    total = sum((float(v) - mean) ** 2 for v in values)
    assert 0.3 < explained_variance(classes, values) < 0.9
    assert explained_variance(classes, values) == pytest.approx(1 - within / total, rel=1e-9)


def test_explained_variance_at_its_ends():
    classes = np.array([1, 1, 2, 2], np.uint8)
    assert explained_variance(classes, [3, 3, 5, 5]) == pytest.approx(1)
    assert explained_variance(classes, [3, 5, 3, 5]) == pytest.approx(0)
    assert explained_variance(np.ones(4, np.uint8), [3, 5, 3, 5]) == pytest.approx(0)
    assert math.isnan(explained_variance(classes, [7, 7, 7, 7])) and math.isnan(explained_variance(classes[:0], []))


def labelled(seed=0, voxels=3000):
    rng = np.random.default_rng(seed)
    return np.repeat([0, 0, 0, 1, 2, 3], voxels // 6), rng


def test_a_map_that_is_the_labels():
    reference, _ = labelled()
    found = agreement_with_labels(reference.astype(np.uint8) + 1, reference, ["a", "b", "c"], slice(None), 1000)
    for key, value in found.items():
        assert value == pytest.approx(1) or key[1] == SHIFTED, key
    assert found["purity", SHIFTED] < 0.7 and found["best_dice", SHIFTED] < 0.7


def test_a_map_of_chance_and_no_map():
    reference, rng = labelled()
    classes = rng.integers(1, 31, len(reference)).astype(np.uint8)
    chance = agreement_with_labels(classes, reference, ["a", "b", "c"], slice(None), 1234)
    assert abs(chance["ami_label", ""]) < 0.01
    assert chance["purity", ""] == pytest.approx(0.5, abs=0.02)
    assert chance["balanced_purity", ""] == pytest.approx(chance["balanced_purity", SHIFTED], abs=0.03)
    none = agreement_with_labels(np.ones(len(reference), np.uint8), reference, ["a", "b", "c"], slice(None), 1234)
    assert none["purity", ""] == none["purity", SHIFTED] == 0.5 and none["organ_purity", ""] == pytest.approx(1 / 3)
    assert none["purity_gain", ""] == none["balanced_purity", ""] == 0
    assert none["ami_label", ""] == pytest.approx(0, abs=1e-12)
    assert none["best_dice", "a"] == none["best_dice", SHIFTED] == pytest.approx(2 * 500 / 3500)


def test_twins_in_tissue_share_their_best_dice():
    """Two kidneys are one tissue, which a map cannot separate: each reaches two thirds at most."""
    reference = np.repeat([0, 1, 2], 100)
    found = agreement_with_labels(np.repeat([1, 2, 2], 100), reference, ["right", "left"], slice(None), 150)
    assert found["best_dice", "right"] == found["best_dice", "left"] == pytest.approx(2 / 3)
    assert found["best_dice", MEAN] == pytest.approx(2 / 3)


def test_one_label_and_labels_that_a_subject_lacks():
    reference = np.repeat([0, 1], 100)
    found = agreement_with_labels(reference + 1, reference, ["lesion"], slice(None), 50)
    assert math.isnan(found["organ_purity", ""]) and ("best_dice", MEAN) not in found
    assert found["best_dice", SHIFTED] == pytest.approx(2 * 100 / 300)
    found = agreement_with_labels(reference + 1, reference, ["lesion", "other"], slice(None), 50)
    assert math.isnan(found["best_dice", "other"]) and found["best_dice", MEAN] == 1
    nothing = agreement_with_labels(reference + 1, np.zeros(200, int), ["lesion", "other"], slice(None), 50)
    assert nothing["purity", ""] == 1
    assert all(math.isnan(value) for (measure, _), value in nothing.items() if measure != "purity")


def test_relabelling_the_classes_changes_nothing():
    classes, reference = draw(1)
    names, everyone = ["a", "b", "c"], slice(None)
    renamed = np.array([0, 5, 3, 9, 1, 7, 2, 4], np.uint8)[classes]
    first, second = (agreement_with_labels(c, reference, names, everyone, 99) for c in (classes, renamed))
    assert first == pytest.approx(second)


def test_truth_is_compared_in_logarithms_and_only_where_protons_are():
    rng = np.random.default_rng(0)
    tissue = np.repeat([0, 4, 9], 200).astype(np.uint8)
    t1 = np.where(tissue == 4, 800, 1300) * np.exp(rng.normal(0, 0.05, 600))
    truth = {"true_tissue": tissue, "true_t1": np.where(tissue == 0, 0, t1).astype(np.float32)}
    classes = np.where(tissue == 0, 1, np.where(t1 < 1000, 2, 3)).astype(np.uint8)
    found = agreement_with_truth(classes, truth, slice(None))
    assert found["ami_tissue", ""] == found["homogeneity", ""] == found["completeness", ""] == pytest.approx(1)
    logs = np.log(t1[tissue > 0].astype(np.float64))
    assert found["variance_t1", ""] == pytest.approx(explained_variance(tissue[tissue > 0], logs), rel=1e-5)
    assert found["variance_t1", BY_TISSUE] == found["variance_t1", ""]
    assert ("variance_t2", "") not in found and agreement_with_truth(classes, {}, slice(None)) == {}


def test_homogeneity_and_completeness_the_right_way_round():
    tissue = np.repeat([1, 2], 100)
    found = agreement_with_truth(np.repeat([1, 2, 3, 4], 50).astype(np.uint8), {"true_tissue": tissue}, slice(None))
    assert found["homogeneity", ""] == pytest.approx(1) and found["completeness", ""] == pytest.approx(0.5)


def test_mutual_information_without_anything_to_know():
    assert math.isnan(mutual_information(np.array([1, 2, 1]), np.zeros(3)))


def test_stability_of_every_pair_by_counting_pairs_of_voxels():
    rng = np.random.default_rng(0)
    maps = [rng.integers(1, 4, 60) for _ in range(2)]
    maps.append(4 - maps[0])  # the same partition with other numbers
    found = stability(maps)
    assert set(found) == {(0, 1), (0, 2), (1, 2)} and found[0, 2] == 1
    pairs = list(itertools.combinations(range(60), 2))
    together = [[m[i] == m[j] for i, j in pairs] for m in maps[:2]]
    both = sum(a and b for a, b in zip(*together, strict=True))
    a, b = map(sum, together)
    chance = a * b / len(pairs)
    assert found[0, 1] == pytest.approx((both - chance) / ((a + b) / 2 - chance))
    assert stability(maps[:1]) == {}


def sweep(clusters=(1, 5, 10, 20), subjects=4, measures=(("ami_label", ""), ("best_dice", "liver"), ("stability", ""))):
    rng = np.random.default_rng(0)
    return pandas.DataFrame(
        [
            {"subject": f"s{s}", "clusters": k, "seed": str(r), "measure": measure, "label": label}
            | {"value": rng.uniform(0.2, 0.9)}
            for s in range(subjects)
            for k in clusters
            for r in range(3)
            for measure, label in measures
        ]
    )


def test_seeds_are_averaged_before_subjects():
    rows = sweep()
    numbers = average_agreement(rows)
    cell = rows[(rows["measure"] == "best_dice") & (rows["clusters"] == 10)]
    means = [cell.loc[cell["subject"] == s, "value"].mean() for s in ("s0", "s1", "s2", "s3")]
    found = numbers[(numbers["measure"] == "best_dice") & (numbers["clusters"] == 10)].iloc[0]
    assert found["mean"] == pytest.approx(np.mean(means)) and found["sd"] == pytest.approx(np.std(means, ddof=1))
    half = 3.182 * np.std(means, ddof=1) / 2  # t quantile of 3 degrees of freedom
    assert found["ci95_high"] - found["mean"] == pytest.approx(half, rel=1e-3)
    assert list(dict.fromkeys(numbers["measure"])) == ["ami_label", "best_dice", "stability"]


def test_values_that_do_not_exist_are_counted_and_measures_without_any_left_out():
    rows = sweep(measures=(("stability", ""), ("organ_purity", ""), ("ami_label", "")))
    rows.loc[rows["measure"] == "organ_purity", "value"] = np.nan
    rows.loc[(rows["measure"] == "ami_label") & (rows["subject"] == "s1"), "value"] = np.nan
    numbers = average_agreement(rows)
    assert list(dict.fromkeys(numbers["measure"])) == ["ami_label", "stability"]
    assert set(zip(numbers["subjects"], numbers["missing"], strict=True)) == {(3, 1), (4, 0)}


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([0.0, 0.50, 0.60, 0.70, 0.71], 15),
        ([1.0, 0.98, 0.90, 0.80, 0.70], 5),
        ([0.0, 0.3, np.nan, 0.8, 0.9], 20),
    ],
)
def test_enough_clusters(means, expected):
    line = pandas.DataFrame({"clusters": [1, 5, 10, 15, 20], "mean": means})
    assert enough_clusters(line) == expected


def test_the_table_has_a_row_per_measure_and_a_column_per_k(tmp_path):
    measures = (("ami_label", ""), ("best_dice", MEAN), ("best_dice", SHIFTED), ("stability", ""))
    table = agreement_table(average_agreement(sweep(measures=measures)), "Simulated scans.")
    assert list(table.text.columns) == ["Measure", "K = 1", "K = 5", "K = 10", "K = 20", "enough"]
    assert list(table.text["Measure"]) == [
        "AMI with labels",
        f"Best Dice: {MEAN}",
        f"Best Dice: {SHIFTED}",
        "Stability",
    ]
    assert table.text["enough"][2] == "-" and table.text["enough"][0] in ("5", "10", "20")
    assert table.caption.startswith("Simulated scans. ") and "n = 4" in table.caption
    write_table(table, tmp_path)
    assert "K = 20" in (tmp_path / "agreement.md").read_text() and "toprule" in to_latex(table)
    assert len(pandas.read_csv(tmp_path / "agreement.csv")) == 16


def test_changes_are_paired():
    rows = sweep(measures=(("best_dice", "liver"), ("best_dice", SHIFTED), ("stability", "")))
    rows.loc[(rows["measure"] == "stability") & (rows["subject"] == "s1") & (rows["clusters"] == 5), "value"] = np.nan
    table = change_table(rows, 5, "Simulated scans.")
    assert list(table.text.columns) == ["Measure", "K = 10", "K = 20"]
    assert list(table.text["Measure"]) == ["Best Dice: liver", "Stability"]
    cells = rows[rows["label"] == "liver"].groupby(["subject", "clusters"])["value"].mean()
    differences = [cells[s, 20] - cells[s, 5] for s in ("s0", "s1", "s2", "s3")]
    found = table.numbers[(table.numbers["label"] == "liver") & (table.numbers["clusters"] == 20)].iloc[0]
    assert found["mean"] == pytest.approx(np.mean(differences))
    assert found["ci95_low"] == pytest.approx(np.mean(differences) - 3.182 * np.std(differences, ddof=1) / 2, rel=1e-3)
    assert set(table.numbers.loc[table.numbers["measure"] == "stability", "missing"]) == {1}
    expected = f"{found['mean']:+.3f} ({found['ci95_low']:+.3f} to {found['ci95_high']:+.3f})"
    assert table.text["K = 20"][0] == expected


def test_the_figure_shows_means_bands_and_the_clusters_of_the_config():
    keys = [
        (measure, label)
        for measure in MEASURES
        for label in (("liver", "spleen", MEAN, SHIFTED) if measure == "best_dice" else ("",))
    ]
    numbers = average_agreement(sweep(measures=keys))
    figure = agreement_against_clusters(numbers, 10, "Simulated scans.")
    assert len(figure.axes) == 6 and figure.get_suptitle().startswith("Simulated scans. 4 subjects")
    dice = next(axis for axis in figure.axes if "Dice" in axis.get_title())
    lines = {line.get_label(): line for line in dice.lines}
    expected = numbers[(numbers["measure"] == "best_dice") & (numbers["label"] == "liver") & (numbers["clusters"] > 1)]
    np.testing.assert_array_equal(lines["liver"].get_xdata(), [5, 10, 20])
    np.testing.assert_allclose(lines["liver"].get_ydata(), expected["mean"])
    assert {"liver", "spleen", MEAN, SHIFTED} <= set(lines) and lines[SHIFTED].get_linestyle() == ":"
    assert len(dice.collections) == 3, "no band around the control"
    marks = [line for line in dice.lines if list(line.get_xdata()) == [10, 10]]
    assert len(marks) == 1


def test_a_figure_of_one_measure_one_k_one_subject(tmp_path):
    from evaluation.report.figures import save_figure

    numbers = average_agreement(sweep(clusters=(1, 5), subjects=1, measures=(("stability", ""),)))
    save_figure(agreement_against_clusters(numbers, 5), tmp_path, "agreement")
    assert agreement_table(numbers).text["K = 5"][0].endswith("± -")
