"""Annotation saved: the smallest N at which one initialisation matches another with more annotated subjects."""

import dataclasses
import math

import numpy as np

from evaluation.report.tables import Table
from evaluation.scores.comparisons import BASELINE
from evaluation.scores.measures import DICE
from evaluation.scores.scores import MEAN
from evaluation.statistics import CONFIDENCE

SAVED = [f"{way}{end}" for way in ("saved_tested", "saved") for end in ("", "_low", "_high")]
NEVER = -math.inf  # below any saving, so that draws that never reach the goal are at the low end of an interval


@dataclasses.dataclass(frozen=True)
class SavedAnnotation:
    """Result of `annotation_saved_interval`; None: the goal is never reached at any tested N.

    Attributes:
        saved: Share saved: `annotation_saved` of the mean curves.
        low: Lower end of the 95 % interval; None if more than 2.5 % of the draws never reach the goal.
        high: Upper end; None if more than 97.5 % of the draws never do.
        share_never: Share of draws that never reach the goal.
        share_at_smallest: Share of draws that reach it at the smallest tested N: their saving is a lower bound.
    """

    saved: float | None
    low: float | None
    high: float | None
    share_never: float
    share_at_smallest: float


def annotation_saved_interval(curve, reference_curve, reference_n, *, interpolate=True, draws=10_000, seed=0):
    """Bootstrap `annotation_saved` over test subjects and repeats.

    In each draw, test subjects are resampled together for both curves and every N, because all are measured on the same
    subjects; repeats are resampled separately for every initialisation and N. Draws that never reach the goal count as
    the worst outcome and stay in the percentile interval; the order of subjects and repeats does not matter. On
    simulated curves with three repeats, the interval covers the true saving in 95 to 99 % of experiments, and with two
    repeats in 87 % if trainings differ strongly; a single repeat has no spread.

    Args:
        curve: Mapping from N to scores `(repeats, subjects, labels)` of the pretrained network, NaN if missing; for
            every N, the same subjects in the same order.
        reference_curve: The same for the network to compare with.
        reference_n: N of the reference whose mean score is to be reached.
        interpolate: As for `annotation_saved`.
        draws: Number of draws.
        seed: Seed of the draws.

    Returns:
        A `SavedAnnotation`.

    Raises:
        ValueError: If `reference_n` is not on the reference curve, or `curve` is empty.

    Reference:
        Ours; the papers give no interval.
    """
    if reference_n not in reference_curve:
        raise ValueError(f"reference_n {reference_n} is not one of the reference curve's N ({sorted(reference_curve)})")
    if not curve:
        raise ValueError("curve is empty")
    goal_scores, tested = reference_curve[reference_n], sorted(curve)
    rank = np.argsort(_mean_of_subjects([*(curve[n] for n in tested), goal_scores]), kind="stable")
    rng = np.random.default_rng(seed)
    subjects = _draw(rng, len(rank), draws)
    means = [_drawn_means(scores[:, rank], subjects, rng) for scores in (*(curve[n] for n in tested), goal_scores)]
    saved = _saved(np.stack(means[:-1], axis=1), np.asarray(tested, float), means[-1], reference_n, interpolate)
    drawn = saved[1:]
    # Percentiles are draws themselves, because nothing can be interpolated between a saving and "never".
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="inverted_cdf")
    at_smallest = np.isclose(drawn, 1 - tested[0] / reference_n)
    return SavedAnnotation(
        *(None if value == NEVER else float(value) for value in (saved[0], low, high)),
        share_never=float(np.mean(drawn == NEVER)),
        share_at_smallest=float(at_smallest.mean()),
    )


def _mean_of_subjects(cells):
    """Return the mean score of each subject, to order subjects independently of their names."""
    flat = np.concatenate([np.swapaxes(scores, 0, 1).reshape(scores.shape[1], -1) for scores in cells], axis=1)
    return _weighted_mean(np.sort(flat, axis=1), 1.0)


def _draw(rng, count, draws):
    """Draw how often each member is in each draw, `(1 + draws, count)`; the first row is the original sample."""
    return np.concatenate([np.ones((1, count)), rng.multinomial(count, np.full(count, 1 / count), draws)])


def _drawn_means(scores, subjects, rng):
    """Return the mean score of each draw, `(draws,)`: over repeats of a subject, then its labels, then subjects."""
    flat = scores.reshape(len(scores), -1)
    flat = flat[np.argsort(_weighted_mean(flat, 1.0), kind="stable")]
    repeats, known = _draw(rng, len(flat), len(subjects) - 1), np.isfinite(flat)
    with np.errstate(invalid="ignore"):
        by_label = (repeats @ np.where(known, flat, 0.0)) / (repeats @ known)
    by_subject = _weighted_mean(by_label.reshape(len(subjects), *scores.shape[1:]), 1.0)
    return _weighted_mean(by_subject, subjects)


def _weighted_mean(values, weights):
    """Return the weighted mean of the finite values along the last axis; NaN if there are none."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.sum(np.where(known, values, 0.0) * weights, axis=-1) / np.sum(known * weights, axis=-1)


def _saved(curves, tested, goals, reference_n, interpolate):
    """Compute `annotation_saved` for every draw, from `curves (draws, N)` and `goals (draws,)`; `NEVER` for None."""
    reached = curves >= goals[:, None]
    first, draw = reached.argmax(axis=1), np.arange(len(curves))
    n = tested[first]
    if interpolate:
        before = np.maximum(first - 1, 0)
        low, high = curves[draw, before], curves[draw, first]
        is_between = (first > 0) & (low < goals) & reached.any(axis=1)
        rise = np.where(is_between, high - low, 1.0)
        n = np.where(is_between, tested[before] + (n - tested[before]) * (goals - low) / rise, n)
    return np.where(reached.any(axis=1), 1 - n / reference_n, NEVER)


def savings_table(scores, baseline=BASELINE):
    """Build the table of how much annotation each init saves compared with the baseline at its largest limited N.

    Args:
        scores: A `Scores`.
        baseline: The initialisation the others are compared with.

    Returns:
        A `Table`, or None if no contrasts have both the baseline at a limited N and another init.
    """
    import pandas

    rows = [
        row
        for _, of_contrasts in sorted(scores.by_contrasts().items())
        for row in _rows_of_contrasts(of_contrasts, baseline)
    ]
    if not rows:
        return None
    numbers = pandas.DataFrame(rows).astype(dict.fromkeys(SAVED, float))
    is_known = scores.frame.groupby("contrasts")["annotated_available"].count().all()
    known = "" if is_known else " How many annotated subjects there are is not recorded: every N counts as limited."
    caption = (
        f"{scores.note} "
        f"Annotation saved, 1 - N / N of {baseline}: the goal is the mean Dice (over test subjects, labels and "
        f"repeats) of {baseline} initialisation at its largest N below the number of annotated subjects there are; N "
        "is the fewest with which the other initialisation reaches it, as tested, and by linear interpolation between "
        "tested N. ≤, ≥: already reached at the smallest tested N. 95 % CI: 10000 bootstrap draws of the "
        "interpolated saving; test subjects are drawn jointly for both curves, repeats separately for every "
        'curve and N; a draw that never reaches the goal counts as the worst outcome ("not reached" if the interval '
        f'ends there), "Never" is their share.{known}'
    ).strip()
    text = pandas.DataFrame([_savings_text(row) for row in numbers.to_dict("records")])
    text = text if text["Note"].any() else text.drop(columns="Note")
    return Table(
        "annotation_saved", f"Annotation saved against {baseline} initialisation", caption, numbers, text, is_first=True
    )


def scores_by_cell(scores):
    """Arrange Dice for `annotation_saved_interval`.

    Args:
        scores: A `Scores` of one set of contrasts.

    Returns:
        Mapping from init to a mapping from N to scores `(repeats, subjects, labels)`.
    """
    import pandas

    subjects, labels = sorted(set(scores.frame["subject"])), sorted(scores.labels)
    columns = pandas.MultiIndex.from_product([subjects, labels])
    cells = {}
    for (init, n), cell in scores.frame.groupby(["init", "n_annotated"]):
        table = cell.pivot(index="repeat", columns=["subject", "label"], values=DICE.key).reindex(columns=columns)
        cells.setdefault(init, {})[n] = table.to_numpy().reshape(-1, len(subjects), len(labels))
    return cells


def _rows_of_contrasts(scores, baseline):
    cells, contrasts = scores_by_cell(scores), scores.frame["contrasts"].iloc[0]
    limited = [n for n in cells.get(baseline, ()) if not n >= scores.available]
    if not limited:
        return
    values, runs, goal_n = scores.per_subject(), scores.runs, max(limited)
    goal_runs = runs[contrasts, baseline, goal_n]
    means = values[values["label"] == MEAN].groupby(["init", "n_annotated"])["value"].mean()
    goal = means[baseline, goal_n]
    for init in (name for name in scores.present if name != baseline):
        interpolated, tested = (
            annotation_saved_interval(cells[init], cells[baseline], goal_n, interpolate=way) for way in (True, False)
        )
        of_cells = {f"{init} N = {n}": runs[contrasts, init, n] for n in sorted(cells[init])}
        of_cells[f"{baseline} N = {goal_n}"] = goal_runs
        single = "one repeat: interval over subjects only" if min(map(len, of_cells.values())) == 1 else ""
        notes = [_falls_again(means[init], goal), _unequal(of_cells), single]
        yield (
            {"contrasts": contrasts, "init": init, "reference": baseline, "reference_n": goal_n}
            | {"reference_dice": goal, "smallest_n": min(cells[init]), "best_dice": means[init].max()}
            | {"saved_tested": tested.saved, "saved_tested_low": tested.low, "saved_tested_high": tested.high}
            | {"saved": interpolated.saved, "saved_low": interpolated.low, "saved_high": interpolated.high}
            | {"share_never": interpolated.share_never, "share_at_smallest": interpolated.share_at_smallest}
            | {"note": "; ".join(part for part in notes if part)}
        )


def _falls_again(curve, goal):
    """Name the tested N at which a curve that has reached the goal falls below it again."""
    reached = [n for n, value in curve.items() if value >= goal]
    below = [str(n) for n, value in curve.items() if reached and n > min(reached) and value < goal]
    return f"below the goal again at N = {', '.join(below)}" if below else ""


def _unequal(runs_of_cells):
    """Report the number of runs of each cell of a curve, if the runs differ."""
    if len(set(map(frozenset, runs_of_cells.values()))) == 1:
        return ""
    return "unequal repeats: " + ", ".join(f"{len(runs)} ({cell})" for cell, runs in runs_of_cells.items())


def _savings_text(row):
    goal_n, smallest = row["reference_n"], row["smallest_n"]
    most = 1 - smallest / goal_n  # a saving of this size is a lower bound, unless it is all of the annotation

    def needed(saved):
        if math.isnan(saved):
            return "not reached"
        if saved == most:
            return f"≤ {smallest}" if smallest else "0"
        return f"{goal_n * (1 - saved):.1f}".removesuffix(".0")

    def share(saved):
        if math.isnan(saved):
            return "not reached"
        return ("≥ " if saved == most and smallest else "") + f"{saved:.0%}"

    low, high = share(row["saved_low"]), share(row["saved_high"])
    return {
        "Contrasts": row["contrasts"],
        "Init": row["init"],
        "Goal": f"{row['reference_dice']:.3f} ({row['reference']}, N = {goal_n})",
        "Best": f"{row['best_dice']:.3f}",
        "N, tested": needed(row["saved_tested"]),
        "Saved, tested N": share(row["saved_tested"]),
        "N, interpolated": needed(row["saved"]),
        "Saved": share(row["saved"]),
        "95 % CI": low if low == high else f"{low} to {high}",
        "Never": f"{row['share_never']:.0%}",
        "Note": row["note"],
    }
