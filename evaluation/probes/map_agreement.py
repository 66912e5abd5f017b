"""Agreement of a constraint map with labels and true tissue, and its stability across seeds.

All measures use the foreground voxels of one subject. Labels cover part of the foreground; the remainder has the value
0 and is called the rest.
"""

import math

import numpy as np

from evaluation.scores.scores import MEAN

SAMPLE_VOXELS = 50_000  # per subject, drawn once, for mutual information; all other measures use all voxels
BY_TISSUE = "by the true tissue"
SHIFTED = "shifted map"


def cross_table(classes, labels, count):
    """Count the voxels of every class and label.

    Args:
        classes: `(voxels,)` unsigned integer.
        labels: `(voxels,)` integer in 0...count - 1.
        count: Number of labels, including the rest.

    Returns:
        `(K, count)` int64; only classes with voxels have a row.
    """
    counts = np.bincount(np.asarray(classes, np.int64) * count + labels)
    table = np.pad(counts, (0, -len(counts) % count)).reshape(-1, count)
    return table[table.any(axis=1)]


def purity(table):
    """Return the share of voxels whose label is the most frequent in their class; `(K, L)` counts or weights."""
    return float(table.max(axis=1).sum() / table.sum()) if table.sum() else math.nan


def purity_gain(table):
    """Return the share of errors made by guessing the most frequent label that knowledge of the class avoids.

    (purity - p) / (1 - p), where p is the share of the most frequent label; NaN if there is only one label.

    Reference:
        Goodman and Kruskal 1954, lambda.
    """
    floor = purity(table.sum(axis=0, keepdims=True))
    return (purity(table) - floor) / (1 - floor) if floor < 1 else math.nan


def balanced_purity(table):
    """Return the purity when every label that occurs has the same total weight, rescaled so that no map gives 0.

    (sum_k max_l n_kl / n_l - 1) / (L - 1): the balanced accuracy of the best rule from class to label, above chance.

    Args:
        table: `(K, L)` counts.

    Returns:
        In [0, 1]; NaN if fewer than two labels occur.
    """
    table = table[:, table.any(axis=0)]
    labels = table.shape[1]
    if labels < 2:
        return math.nan
    return float(((table / table.sum(axis=0)).max(axis=1).sum() - 1) / (labels - 1))


def best_dice(table, label):
    """Return the largest Dice between a label and any union of classes.

    The best union takes classes in the order of the label's share in them, up to some class, so that only K unions are
    tried rather than 2^K: adding a class raises Dice = 2a / b exactly if its own 2 n_kl / n_k exceeds it.

    Args:
        table: `(K, L)` counts, no row empty.
        label: Column of the label.

    Returns:
        Dice in [0, 1]; NaN if the label does not occur.
    """
    inside, sizes = table[:, label], table.sum(axis=1)
    if not inside.any():
        return math.nan
    order = np.argsort(-inside / sizes, kind="stable")
    return float((2 * np.cumsum(inside[order]) / (np.cumsum(sizes[order]) + inside.sum())).max())


def explained_variance(classes, values):
    """Return the share of the variance of values that lies between classes (eta squared).

    Args:
        classes: `(voxels,)` unsigned integer.
        values: `(voxels,)` float.

    Returns:
        In [0, 1]; NaN if all values are equal or there are none.
    """
    values = np.asarray(values, np.float64)
    if not len(values) or np.ptp(values) == 0:
        return math.nan
    deviations = values - values.mean()
    sizes, sums = np.bincount(classes), np.bincount(classes, deviations)
    between = np.sum(sums[sizes > 0] ** 2 / sizes[sizes > 0])
    return float(between / np.sum(deviations**2))


def agreement_with_labels(classes, labels, names, sample, shift):
    """Compare one map, and a shifted copy of it as a control, with the labels of the subject.

    Args:
        classes: `(voxels,)` unsigned integer, in the order of their positions in the volume.
        labels: `(voxels,)` 0 for the rest, 1...L in the order of `names`.
        names: Class names.
        sample: Indices of the voxels from which mutual information is estimated.
        shift: Voxels by which the control's classes are shifted along that order, cyclically. Class sizes and most of
            their shape are preserved, so the control shows what this number of classes achieves by chance.

    Returns:
        `{(measure, label): value}`; the control has the label `SHIFTED`.
    """
    table = cross_table(classes, labels, len(names) + 1)
    organs = table[:, 1:]
    several = (organs.sum(axis=0) > 0).sum() > 1
    dice = {name: best_dice(table, number) for number, name in enumerate(names, start=1)}
    shifted = cross_table(np.roll(classes, shift), labels, len(names) + 1)
    found = {
        ("ami_label", ""): mutual_information(classes[sample], labels[sample]),
        ("purity", ""): purity(table),
        ("purity", SHIFTED): purity(shifted),
        ("purity_gain", ""): purity_gain(table),
        ("balanced_purity", ""): balanced_purity(table),
        ("balanced_purity", SHIFTED): balanced_purity(shifted),
        ("organ_purity", ""): purity(organs) if several else math.nan,
    }
    if len(names) > 1:
        found["best_dice", MEAN] = _mean(dice.values())
    found |= {("best_dice", name): value for name, value in dice.items()}
    found["best_dice", SHIFTED] = _mean(best_dice(shifted, number) for number in range(1, len(names) + 1))
    return found


def _mean(values):
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def agreement_with_truth(classes, truth, sample):
    """Return `{(measure, label): value}` for one map against the true parameters of the simulator.

    T1 and T2 enter as logarithms: tissues differ by factors, and a little fluid would otherwise account for most of the
    variance.

    Args:
        classes: `(voxels,)` unsigned integer.
        truth: Some of `true_tissue` (tissue numbers), `true_t1` and `true_t2` (ms, 0 without protons), `(voxels,)`.
        sample: Indices of the voxels from which mutual information is estimated.
    """
    from sklearn.metrics import homogeneity_completeness_v_measure

    found, tissue = {}, truth.get("true_tissue")
    if tissue is not None:
        homogeneity, completeness, _ = homogeneity_completeness_v_measure(tissue, classes)
        found["ami_tissue", ""] = mutual_information(classes[sample], tissue[sample])
        found |= {("homogeneity", ""): float(homogeneity), ("completeness", ""): float(completeness)}
    for name in ("t1", "t2"):
        times = truth.get(f"true_{name}")
        if times is None:
            continue
        known = times > 0
        logs = np.log(times[known], dtype=np.float64)
        found[f"variance_{name}", ""] = explained_variance(classes[known], logs)
        if tissue is not None:
            found[f"variance_{name}", BY_TISSUE] = explained_variance(tissue[known], logs)
    return found


def mutual_information(classes, reference):
    """Return mutual information adjusted for chance: 0 on average for independent labelings, 1 for equal ones.

    NaN if the reference has a single value.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(reference, classes)) if len(np.unique(reference)) > 1 else math.nan


def stability(maps):
    """Return the adjusted Rand index of all pairs of maps, `{(i, j): value}` with i < j: 1 if equal, 0 by chance.

    Args:
        maps: List of `(voxels,)` integer arrays on the same voxels.
    """
    from sklearn.metrics import adjusted_rand_score

    return {(i, j): float(adjusted_rand_score(maps[i], maps[j])) for j in range(len(maps)) for i in range(j)}
