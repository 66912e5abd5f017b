"""The tables of a report: scores by contrasts, init and N, and the paired differences to random initialisation."""

import dataclasses
import math

from evaluation.results import CELL, MEAN, in_grid_order, per_subject
from evaluation.statistics import adjust_family, annotation_saved, mean_interval, paired_comparison
from utils.runs import atomic_path

BASELINE = "random"
TITLES = {"dice": "Dice", "hd95_mm": "HD95 [mm]", "surface_dice": "Surface Dice"}


@dataclasses.dataclass(frozen=True)
class Table:
    """One table, ready to be written: numbers for programs, text for readers.

    Attributes:
        name: File name without suffix.
        title: Heading.
        caption: What the numbers are and how they were averaged.
        numbers: Tidy DataFrame in full precision (CSV).
        text: DataFrame of strings as a reader sees it (Markdown, LaTeX, HTML, terminal).
    """

    name: str
    title: str
    caption: str
    numbers: object
    text: object


def score_table(results, metric, inits=(), note=""):
    """Mean and standard deviation of a metric by contrasts, init, N and label.

    Args:
        results: From `collect_results`.
        metric: `dice`, `hd95_mm` or `surface_dice`.
        inits: Initialisations in the order of the rows.
        note: First words of the caption, such as "Simulated scans.".

    Returns:
        A `Table`.
    """
    import pandas

    values = per_subject(results, metric)
    rows = []
    for key in _cells(values, inits):
        cell = values[(values[CELL] == key).all(axis=1)]
        for label in [*_labels(values), MEAN]:
            part = cell[cell["label"] == label]
            mean, sd, low, high = mean_interval(part["value"])
            rows.append(
                dict(zip(CELL, key, strict=True))
                | {"label": label, "mean": mean, "sd": sd, "ci95_low": low, "ci95_high": high}
                | {
                    "subjects": int(part["value"].notna().sum()),
                    "repeats": int(part["repeats"].max() if len(part) else 0),
                }
                | {"missing": int(part["missing"].sum())}
            )
    numbers = pandas.DataFrame(rows)
    return Table(
        metric, TITLES[metric], _score_caption(metric, values, note), numbers, _score_text(numbers, _digits(metric))
    )


def _score_caption(metric, values, note):
    parts = [
        note,
        f"{TITLES[metric]} (mean ± standard deviation over test subjects) by initialisation and number N of annotated "
        "subjects. The repeats of a subject are averaged first, then its labels.",
        "NaN: scores without a value (label absent in reference and prediction), left out of the means.",
    ]
    if metric == "hd95_mm":
        parts.append("A label absent in one of the two counts as the image diagonal.")
    if values.loc[values["label"] == MEAN, "subject"].nunique() < 10:
        parts.append("Fewer than 10 test subjects: read the spread with care.")
    return " ".join(part for part in parts if part)


def _score_text(numbers, digits):
    import pandas

    labels = list(dict.fromkeys(numbers["label"]))
    shown = [label for label in labels if label != MEAN] if len(labels) == 2 else labels
    rows = []
    for key, cell in numbers.groupby(CELL, sort=False):
        by_label = cell.set_index("label")
        row = dict(zip(("Contrasts", "Init", "N"), map(str, key), strict=True))
        row |= {label: _mean_sd(by_label.loc[label], digits) for label in shown}
        row |= {"Subjects": str(by_label.loc[MEAN, "subjects"]), "Repeats": str(by_label.loc[MEAN, "repeats"])}
        rows.append(row | {"NaN": str(by_label.loc[MEAN, "missing"])})
    return pandas.DataFrame(rows)


def difference_table(results, inits=(), note="", baseline=BASELINE):
    """Paired differences in Dice (mean over labels) of every init to the baseline, by contrasts and N.

    Args:
        results: From `collect_results`.
        inits: Initialisations in the order of the rows.
        note: First words of the caption.
        baseline: The initialisation the others are compared with.

    Returns:
        A `Table`, or None when no init shares contrasts and N with the baseline.
    """
    import pandas

    values = per_subject(results)
    values = values[values["label"] == MEAN]
    keys, comparisons = [], []
    for contrasts, init, n in _cells(values, inits):
        cells = values[(values["contrasts"] == contrasts) & (values["n_annotated"] == n)]
        both = cells.pivot(index="subject", columns="init", values="value")
        if init != baseline and baseline in both:
            keys.append((contrasts, init, n))
            comparisons.append(paired_comparison(both[init], both[baseline]))
    if not keys:
        return None
    family = adjust_family(comparisons)
    numbers = pandas.DataFrame(
        [dict(zip(CELL, key, strict=True)) | dataclasses.asdict(one) for key, one in zip(keys, family, strict=True)]
    ).astype({"note": str})
    caption = (
        f"{note} Difference in Dice to {baseline} initialisation (mean over labels, repeats averaged per subject) "
        f"across the same test subjects, with 95 % CI. Paired two-sided t-test; Bonferroni and Holm over the family of "
        f"{len(family)} comparisons in this table. d_z: mean difference / standard deviation of the differences. "
        "* Bonferroni-adjusted p ≤ 0.05."
    ).strip()
    text = pandas.DataFrame(list(map(_difference_text, keys, family)))
    text = text if text["Note"].any() else text.drop(columns="Note")
    return Table("dice_differences", f"Difference in Dice to {baseline} initialisation", caption, numbers, text)


def _difference_text(key, comparison):
    contrasts, init, n = key
    star = "*" if comparison.p_bonferroni is not None and comparison.p_bonferroni <= 0.05 else ""
    interval = "-"
    if comparison.ci_low is not None:
        interval = f"{comparison.ci_low:+.3f} to {comparison.ci_high:+.3f}"
    return {
        "Contrasts": contrasts,
        "Init": init,
        "N": str(n),
        "Difference": _number(comparison.mean_difference, "+.3f") + star,
        "95 % CI": interval,
        "Pairs": str(comparison.pairs),
        "t": _number(comparison.t, ".2f"),
        "p": _p_value(comparison.p),
        "p Bonferroni": _p_value(comparison.p_bonferroni),
        "p Holm": _p_value(comparison.p_holm),
        "p Wilcoxon": _p_value(comparison.p_wilcoxon),
        "d_z": _number(comparison.effect_size, ".2f"),
        "Note": comparison.note + (f" {comparison.unpaired} without a pair" if comparison.unpaired else ""),
    }


def describe_savings(results, inits=(), baseline=BASELINE):
    """Say how much annotation each init saves against the baseline at the baseline's largest N.

    Args:
        results: From `collect_results`.
        inits: Initialisations in the order of the sentences.
        baseline: The initialisation the others are compared with.

    Returns:
        List of sentences, one per contrasts and init.
    """
    values = per_subject(results)
    values = values[values["label"] == MEAN]
    curves = values.groupby(["contrasts", "init", "n_annotated"])["value"].mean()
    sentences = []
    for contrasts in dict.fromkeys(values["contrasts"]):
        present = set(values.loc[values["contrasts"] == contrasts, "init"])
        reference = curves[contrasts, baseline].to_dict() if baseline in present else {}
        for init in in_grid_order(present - {baseline}, inits) if reference else ():
            goal = max(reference)
            curve = curves[contrasts, init].to_dict()
            what = f"{contrasts}: {init} reaches the mean Dice of {baseline} at N = {goal} ({reference[goal]:.3f})"
            sentences.append(f"{what} {_saving_in_words(annotation_saved(curve, reference, goal), curve, goal)}.")
    return sentences


def _saving_in_words(saved, curve, goal):
    if saved is None:
        return f"at no tested N (best {max(curve.values()):.3f})"
    n = goal * (1 - saved)
    at_least = "at most " if n <= min(curve) else ""
    return f"with {at_least}N = {n:.1f} (annotation saved: {saved:.0%}; straight lines between tested N)"


def write_table(table, folder):
    """Write a table as CSV (full precision), Markdown and LaTeX (booktabs).

    Args:
        table: A `Table`.
        folder: Where `<name>.csv`, `<name>.md` and `<name>.tex` go.
    """
    contents = {"csv": table.numbers.to_csv(index=False), "md": to_markdown(table), "tex": to_latex(table)}
    for suffix, content in contents.items():
        with atomic_path(folder / f"{table.name}.{suffix}") as temporary:
            temporary.write_text(content, encoding="utf-8")


def to_markdown(table):
    """Render a table for GitHub: caption, then the rows."""
    rows = [list(table.text.columns), ["---"] * table.text.shape[1], *table.text.to_numpy().tolist()]
    lines = ["| " + " | ".join(str(value).replace("|", "\\|") for value in row) + " |" for row in rows]
    return "\n".join([table.caption, "", *lines, ""])


def to_latex(table):
    """Render a table with booktabs rules; needs `\\usepackage{booktabs}`."""
    text = table.text.map(_latex).rename(columns=_latex)
    styler = text.style.hide(axis="index")
    label = f"tab:{table.name}"
    return styler.to_latex(
        hrules=True, caption=_latex(table.caption), label=label, column_format="l" * text.shape[1], position="ht"
    )


def _latex(text):
    for character, escaped in (("\\", r"\textbackslash{}"), ("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("#", r"\#")):
        text = text.replace(character, escaped)
    return text.replace("±", r"$\pm$").replace("≤", r"$\leq$").replace("<", "$<$")


def _cells(values, inits):
    """Cells in the order of the rows: contrasts, then N, then init, so that what is compared stands together."""
    present = set(values[CELL].itertuples(index=False, name=None))
    order = in_grid_order({init for _, init, _ in present}, inits)
    return sorted(present, key=lambda cell: (cell[0], cell[2], order.index(cell[1])))


def _labels(values):
    return [label for label in dict.fromkeys(values["label"]) if label != MEAN]


def _digits(metric):
    return 1 if metric == "hd95_mm" else 3


def _mean_sd(row, digits):
    if math.isnan(row["mean"]):
        return "-"
    return f"{row['mean']:.{digits}f} ± " + ("-" if math.isnan(row["sd"]) else f"{row['sd']:.{digits}f}")


def _number(value, form):
    return "-" if value is None else format(value, form)


def _p_value(p):
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
