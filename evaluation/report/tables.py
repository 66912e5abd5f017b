"""The tables of a report: scores by contrasts, init and N, paired differences to random initialisation, durations."""

import dataclasses
import math

from evaluation.report.formats import from_to, interval, number, p_value
from evaluation.scores.comparisons import BASELINE, compare_inits
from evaluation.scores.dead_classes import DEAD_SAYS, SELECTING_SAYS, about_runs, dead_text, selecting_text
from evaluation.scores.external import EXTERNAL_SAYS, is_external
from evaluation.scores.measures import CELL, DICE, SETTINGS
from evaluation.scores.scores import MEAN
from evaluation.statistics import stars
from utils.checks import counted
from utils.runs import atomic_path

STARS_SAY = "* p ≤ 0.05, ** p ≤ 0.01, *** p ≤ 0.001, Bonferroni-adjusted"


@dataclasses.dataclass(frozen=True)
class Table:
    """One table: numbers for programs, text for readers.

    Attributes:
        name: File name without suffix.
        title: Heading.
        caption: Meaning of the numbers and order of averaging.
        numbers: Tidy DataFrame in full precision (CSV).
        text: DataFrame of strings as a reader sees it (Markdown, LaTeX, HTML, terminal).
        is_folded: Whether the page hides it until a reader opens it.
        is_first: Whether the page shows it before all other tables, next to the findings.
    """

    name: str
    title: str
    caption: str
    numbers: object
    text: object
    is_folded: bool = False
    is_first: bool = False


def score_table(scores, measure):
    """Build the table of means and standard deviations of a measure by contrasts, init, N and label.

    Args:
        scores: A `Scores`.
        measure: One of its `measures`.

    Returns:
        A `Table`. In the Dice table, means over labels are starred as in `difference_table`.
    """
    import pandas

    numbers = score_numbers(scores, measure, compare_inits(scores) if measure is DICE else pandas.DataFrame())
    caption = _score_caption(scores, measure, is_starred=any(numbers["stars"]))
    return Table(measure.key, measure.title, caption, numbers, _score_text(numbers, measure.digits))


def score_numbers(scores, measure, compared):
    """Add the accompanying columns of its table to the averages of a measure.

    Args:
        scores: A `Scores`.
        measure: One of its `measures`.
        compared: From `compare_inits`; results that differ from the baseline get stars.

    Returns:
        The measure's part of `Scores.summary` with `stars`, `selecting_min` and `selecting` (validation subjects that
        chose weights or rates, per run), `dead` and `judged` (classes, over all runs).
    """
    import pandas

    keys = [*CELL, "label"]
    marks = {tuple(row[key] for key in keys): stars(row["p_bonferroni"]) for row in compared.to_dict("records")}
    about = {cell: about_runs(rows) for cell, rows in scores.frame.groupby(CELL)}
    numbers = scores.summary[measure.key].copy()
    starred = [marks.get(key, "") for key in numbers[keys].itertuples(index=False, name=None)]
    numbers.insert(numbers.columns.get_loc("subjects"), "stars", starred)
    beside = [about[cell] for cell in numbers[CELL].itertuples(index=False, name=None)]
    return pandas.concat([numbers, pandas.DataFrame(beside)], axis=1)


def _score_caption(scores, measure, is_starred):
    settings = {key: getattr(scores, key) for key in SETTINGS}
    is_known = all(value is not None or f"{{{key}" not in measure.opening for key, value in settings.items())
    parts = [
        scores.note,
        measure.opening.format(**settings) if is_known else "",
        f"{measure.title} (mean ± standard deviation over test subjects) by initialisation and number N of annotated "
        "subjects. The repeats of a subject are averaged first, then its labels.",
        measure.without_value,
        SELECTING_SAYS,
        DEAD_SAYS,
        measure.ending,
    ]
    if is_starred:
        parts.append(
            f"Stars: the mean over labels differs from that of {BASELINE} initialisation, up or down ({STARS_SAY})."
        )
    parts += [EXTERNAL_SAYS if any(map(is_external, scores.present)) else "", few_subjects(scores)]
    return " ".join(part for part in parts if part)


def few_subjects(scores):
    """Warn if the spread is that of few test subjects; empty if there are enough."""
    few = scores.frame["subject"].nunique() < 10
    return "Fewer than 10 test subjects: read the spread with care." if few else ""


def mean_sd(row, digits):
    """Write mean and standard deviation, with a dash for undefined values."""
    return "-" if math.isnan(row["mean"]) else f"{row['mean']:.{digits}f} ± {number(row['sd'], f'.{digits}f')}"


def _score_text(numbers, digits):
    import pandas

    labels = list(dict.fromkeys(numbers["label"]))
    shown = [label for label in labels if label != MEAN] if len(labels) == 2 else labels
    rows = []
    for key, cell in numbers.groupby(CELL, sort=False):
        by_label = cell.set_index("label")
        over_labels = by_label.loc[MEAN]
        row = dict(zip(("Contrasts", "Init", "N"), map(str, key), strict=True))
        row |= {"Selecting": selecting_text(over_labels)}
        row |= {label: mean_sd(by_label.loc[label], digits) if label in by_label.index else "-" for label in shown}
        row[shown[-1]] += over_labels["stars"]  # the only label, or the mean over labels
        row |= {"Subjects": str(over_labels["subjects"])}
        row |= {"Repeats": from_to(over_labels["repeats_min"], over_labels["repeats"])}
        rows.append(row | {"NaN": str(over_labels["missing"]), "Dead": dead_text(over_labels)})
    return pandas.DataFrame(rows)


def difference_table(scores, by_label=False, baseline=BASELINE):
    """Build the table of paired differences in Dice between every init and the baseline, by contrasts and N.

    Args:
        scores: A `Scores`.
        by_label: False: the mean over labels, table `dice_differences`. True: each label separately, with its own
            family for the adjusted p values, table `dice_differences_by_label`.
        baseline: The initialisation the others are compared with.

    Returns:
        A `Table`, or None if no init shares contrasts and N with the baseline or, by label, if there is only one.
    """
    numbers = compare_inits(scores, by_label, baseline=baseline)
    if numbers.empty or (by_label and numbers["label"].nunique() == 1):
        return None
    what = "of every label" if by_label else "mean over labels"
    return differences_as_table(
        numbers,
        "dice_differences" + ("_by_label" if by_label else ""),
        f"Difference in Dice to {baseline} initialisation" + (", by label" if by_label else ""),
        f"{scores.note} Difference in Dice to {baseline} initialisation ({what}, repeats averaged per subject)",
        lambda row: ({"Label": row.label} if by_label else {}, DICE.digits),
    )


def differences_as_table(numbers, name, title, opening, describe):
    """Render paired differences.

    Args:
        numbers: From `compare_inits`, not empty.
        name: File name of the table.
        title: Heading of the table.
        opening: First words of the caption: what is compared.
        describe: Function of a row that returns the cells after N, `{column: text}`, and the decimal places.

    Returns:
        A `Table`.
    """
    import pandas

    caption = (
        f"{opening} across the same test subjects, with 95 % CI. Paired two-sided t-test; Bonferroni and Holm over the "
        f"family of {counted(len(numbers), 'comparison')} in this table. d_z: mean difference / standard deviation of "
        f"the differences. {STARS_SAY}. These columns compare the trained networks on other subjects. By "
        "repeat: the same difference in single repeats (other annotated subjects, other random weights, the same "
        "pretrained ones), mean ± standard deviation over repeats. Same sign: repeats that agree with that mean; all "
        "K repeats agree by chance with probability 1 / 2^(K-1). A difference that is small compared with its spread "
        "over repeats may change its sign in another training, however small p is."
    ).strip()
    text = pandas.DataFrame([_difference_text(row, *describe(row)) for row in numbers.itertuples()])
    text = text if text["Note"].any() else text.drop(columns="Note")
    return Table(name, title, caption, numbers, text)


def _difference_text(row, described, digits):
    return (
        {"Contrasts": row.contrasts, "Init": row.init, "N": str(row.n_annotated)}
        | described
        | {
            "Difference": number(row.mean_difference, f"+.{digits}f") + stars(row.p_bonferroni),
            "95 % CI": interval(row.ci_low, row.ci_high, f"+.{digits}f"),
            "Pairs": str(row.pairs),
            "t": number(row.t, ".2f"),
            "p": p_value(row.p),
            "p Bonferroni": p_value(row.p_bonferroni),
            "p Holm": p_value(row.p_holm),
            "p Wilcoxon": p_value(row.p_wilcoxon),
            "d_z": number(row.effect_size, ".2f"),
            "By repeat": f"{number(row.repeat_mean, f'+.{digits}f')} ± {number(row.repeat_sd, f'.{digits}f')}",
            "Same sign": f"{row.repeats_same_sign} of {row.repeats}",
            "Note": row.note,
        }
    )


def duration_table(scores):
    """Build the table of wall-clock times per cell of a `Scores`, and how much of each was compilation.

    Returns:
        A `Table` with one row per contrasts, init and N and one for all cells, or None if no cell has a duration.
    """
    import pandas

    timed_scores = scores.only(scores.frame["duration_s"].notna())
    runs = timed_scores.frame.drop_duplicates("folder")
    if runs.empty:
        return None
    rows = []
    for contrasts, init, n in [*timed_scores.cells, ("all", "", "")]:
        chosen = runs if contrasts == "all" else runs[(runs[CELL] == (contrasts, init, n)).all(axis=1)]
        timed = chosen[chosen["compile_s"].notna()]
        rows.append(
            dict(zip(CELL, (contrasts, init, n), strict=True))
            | {"runs": len(chosen), "mean_s": chosen["duration_s"].mean(), "longest_s": chosen["duration_s"].max()}
            | {"total_s": chosen["duration_s"].sum(), "compile_s": timed["compile_s"].sum(min_count=1)}
            | {"compile_share": timed["compile_s"].sum() / timed["duration_s"].sum() if len(timed) else math.nan}
        )
    numbers = pandas.DataFrame(rows)
    columns = {"Mean [s]": "mean_s", "Longest [s]": "longest_s", "Compiling [s]": "compile_s"}
    text = [
        {"Contrasts": row.contrasts, "Init": row.init, "N": str(row.n_annotated), "Runs": str(row.runs)}
        | {title: number(getattr(row, column), ".1f") for title, column in columns.items()}
        | {"Compiling": number(row.compile_share, ".0%"), "In all [min]": number(row.total_s / 60, ".1f")}
        for row in numbers.itertuples()
    ]
    caption = (
        f"{scores.note} Wall-clock time of finetuning runs: training, validation and prediction of the test subjects. "
        "Compiling [s]: in all runs of a row, until their first training and validation steps have run; runs of one "
        "call share compiled code, so the first includes the compilation for all. -: not recorded."
    ).strip()
    return Table("durations", "Time per run", caption, numbers, pandas.DataFrame(text))


def write_table(table, folder):
    """Write a table as CSV (full precision), Markdown and LaTeX (booktabs).

    Args:
        table: A `Table`.
        folder: Folder for `<name>.csv`, `<name>.md` and `<name>.tex`.
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
    for character, escaped in (
        ("\\", r"\textbackslash{}"),
        ("&", r"\&"),
        ("%", r"\%"),
        ("_", r"\_"),
        ("#", r"\#"),
        ("^", r"\^{}"),
    ):
        text = text.replace(character, escaped)
    return text.replace("±", r"$\pm$").replace("≤", r"$\leq$").replace("≥", r"$\geq$").replace("<", "$<$")
