"""The table of a sweep over the number of classes K of constraint maps."""

import math

from evaluation.probes.map_agreement import BY_TISSUE, SAMPLE_VOXELS, SHIFTED
from evaluation.report.tables import Table
from evaluation.scores.scores import mean_interval

ENOUGH = 0.02  # within this distance of the best mean, more classes count as no improvement
NO_MAP = 1  # number of classes of the trivial map, which distinguishes no voxels
REFERENCES = (BY_TISSUE, SHIFTED)  # labels of the references of a measure

# measure: (title, meaning), in the order of the table; the best value of each is 1.
MEASURES = {
    "ami_tissue": ("AMI with true tissue", "adjusted mutual information, 0 for chance at any K"),
    "homogeneity": ("Homogeneity, true tissue", "1 when every class holds one tissue"),
    "completeness": ("Completeness, true tissue", "1 when every tissue lies in one class"),
    "variance_t1": ("Variance of ln T1", "share of it that lies between classes; voxels with protons"),
    "variance_t2": ("Variance of ln T2", "the same for T2"),
    "ami_label": ("AMI with labels", "the same, voxels without a label being one more label"),
    "purity": ("Purity", "share of voxels with the most frequent label of their class; voxels without a label count"),
    "purity_gain": ("Purity gain", "(purity - p) / (1 - p), p without map: Goodman and Kruskal's lambda"),
    "balanced_purity": (
        "Balanced purity",
        "purity when every label and the rest weigh alike, rescaled to 0 without map",
    ),
    "organ_purity": ("Purity among labelled voxels", "the rest left out; where there are several labels"),
    "best_dice": ("Best Dice", "of a label and the union of classes that fits it best"),
    "stability": ("Stability", "adjusted Rand index of maps that differ by the seed of k-means"),
}


def average_agreement(rows):
    """Average over the seeds of a subject, then over subjects.

    Args:
        rows: DataFrame with `subject`, `clusters`, `measure`, `label` ("" where there is none) and `value`.

    Returns:
        DataFrame with a row per measure, label and number of clusters: `mean`, `sd`, `ci95_low`, `ci95_high` over
        subjects, `subjects` with a value, and `missing`, those without. Measures without any value are left out.
    """
    return _over_subjects(_per_subject(rows))


def _per_subject(rows):
    """Average over the seeds of a subject, ignoring NaN."""
    return rows.groupby(["measure", "label", "clusters", "subject"], sort=False)["value"].mean().reset_index()


def _over_subjects(values):
    """Compute the statistics of one value per subject, in the order of `MEASURES`."""
    import pandas

    keys, found = ["measure", "label", "clusters"], []
    for key, cell in values.groupby(keys, sort=False):
        statistics = dict(zip(("mean", "sd", "ci95_low", "ci95_high"), mean_interval(cell["value"]), strict=True))
        known = int(cell["value"].notna().sum())
        counts = {"subjects": known, "missing": len(cell) - known}
        found.append(dict(zip(keys, key, strict=True)) | statistics | counts)
    numbers = pandas.DataFrame(found)
    order = {measure: place for place, measure in enumerate(MEASURES)}
    numbers = numbers[numbers.groupby(["measure", "label"])["subjects"].transform("max") > 0]
    numbers = numbers.sort_values("measure", key=lambda column: column.map(order), kind="stable")
    return numbers.reset_index(drop=True)


def enough_clusters(numbers):
    """Return the smallest K whose mean is within `ENOUGH` of the largest mean over all K, except the trivial map.

    Args:
        numbers: Rows of `average_agreement` for one measure and label.
    """
    means = numbers[numbers["clusters"] > NO_MAP].set_index("clusters")["mean"].dropna().sort_index()
    return int(means.index[means >= means.max() - ENOUGH][0])


def agreement_table(numbers, note=""):
    """Build the table of a sweep over K.

    Args:
        numbers: From `average_agreement`.
        note: First words of the caption.

    Returns:
        A `Table`: measures in rows, K in columns, and the K beyond which more classes bring no improvement.
    """
    import pandas

    rows = []
    for (measure, label), line in numbers.groupby(["measure", "label"], sort=False):
        cells = line.set_index("clusters").sort_index()
        row = {"Measure": title_of(measure, label)}
        row |= {_heading(k): _mean_sd(cell) for k, cell in cells.iterrows()}
        rows.append(row | {"enough": "-" if label in REFERENCES else str(enough_clusters(line))})
    meanings = "; ".join(
        f"{title} = {meaning}" for measure, (title, meaning) in MEASURES.items() if measure in set(numbers["measure"])
    )
    caption = (
        f"{note} Agreement of constraint maps of K classes, foreground voxels only: mean ± standard deviation over "
        f"subjects (n = {numbers['subjects'].max()}), the seeds of a subject averaged first. K = 1: no map. {SHIFTED}: "
        f"the same classes in the wrong place. enough: smallest K within {ENOUGH} of the best mean. {meanings}. AMI "
        f"from at most {SAMPLE_VOXELS:,} voxels a subject."
    ).strip()
    text = pandas.DataFrame(rows).fillna("-")
    return Table("agreement", "Agreement of constraint maps", caption, numbers, text)


def change_table(rows, clusters, note=""):
    """Show how values of K other than the config's change the measures in the same subjects.

    Args:
        rows: As for `average_agreement`, including the config's K and at least one other.
        clusters: K of the config.
        note: First words of the caption.

    Returns:
        A `Table`: mean paired difference and its 95 % CI, measures in rows, K in columns.
    """
    import pandas

    values = _per_subject(rows[~rows["label"].isin(REFERENCES) & (rows["clusters"] > NO_MAP)])
    at_config = values[values["clusters"] == clusters].set_index(["measure", "label", "subject"])["value"]
    own = at_config.reindex(pandas.MultiIndex.from_frame(values[["measure", "label", "subject"]])).to_numpy()
    numbers = _over_subjects(values.assign(value=values["value"] - own)[values["clusters"] != clusters])
    text = []
    for (measure, label), line in numbers.groupby(["measure", "label"], sort=False):
        cells = line.set_index("clusters").sort_index()
        text.append(
            {"Measure": title_of(measure, label)} | {_heading(k): _change(cell) for k, cell in cells.iterrows()}
        )
    caption = (
        f"{note} Difference to maps of K = {clusters}, as in the config, in the same subjects: mean and 95 % "
        f"confidence interval (t distribution, n = {numbers['subjects'].max()}), not adjusted for the number of "
        "comparisons. "
        "Measures as in the table of agreement."
    ).strip()
    return Table("change", f"Change against K = {clusters}", caption, numbers, pandas.DataFrame(text).fillna("-"))


def _change(cell):
    if math.isnan(cell["mean"]):
        return "-"
    interval = "" if math.isnan(cell["ci95_low"]) else f" ({cell['ci95_low']:+.3f} to {cell['ci95_high']:+.3f})"
    return f"{cell['mean']:+.3f}{interval}"


def title_of(measure, label):
    """Return the name of a measure, with its label if there is one."""
    return ": ".join(part for part in (MEASURES[measure][0], label) if part)


def _heading(clusters):
    return f"K = {clusters}"


def _mean_sd(cell):
    if math.isnan(cell["mean"]):
        return "-"
    return f"{cell['mean']:.3f} ± " + ("-" if math.isnan(cell["sd"]) else f"{cell['sd']:.3f}")
