"""Comparison of initialisations with a baseline at the same contrasts and N: across test subjects and repeats."""

import dataclasses

from evaluation.scores.measures import CELL, DICE
from evaluation.scores.scores import MEAN
from evaluation.statistics import adjust_family, paired_comparison

BASELINE = "random"


def compare_inits(scores, by_label=False, measures=None, baseline=BASELINE):
    """Compare the scores of every init with those of the baseline, by contrasts and N.

    Two questions are answered, because either alone is misleading. Across test subjects (paired t-test, as in the renal
    paper): would these trained networks differ on other subjects? With many similar subjects, any difference between
    two trainings becomes significant, even one whose sign would change in another training. Across repeats (ours):
    does the difference recur with other annotated subjects and other random weights?

    Args:
        scores: A `Scores`.
        by_label: True: each label separately. False: the mean over labels.
        measures: Measures that form one family; None: the Dice alone.
        baseline: The initialisation the others are compared with.

    Returns:
        DataFrame, one row per comparison: `metric` (the key, if measures are given), `contrasts`, `init`,
        `n_annotated`, `label`, the fields of `PairedComparison` (repeats averaged per subject first; p values adjusted
        over all rows), `repeats` (those that both have), `repeat_mean` and `repeat_sd` of the differences in single
        repeats, `repeats_same_sign` (repeats whose difference has the sign of `repeat_mean`), and `note` (why there is
        no test; subjects without a pair; repeats that only one of the two has). Empty if no init shares contrasts and N
        with the baseline.
    """
    import pandas

    found = [
        (({"metric": measure.key} if measures else {}) | key, comparison, rest)
        for measure in measures or (DICE,)
        for key, comparison, rest in _comparisons(scores, measure, baseline, by_label)
    ]
    adjusted = adjust_family([comparison for _, comparison, _ in found])
    return pandas.DataFrame(
        [key | dataclasses.asdict(one) | rest for (key, _, rest), one in zip(found, adjusted, strict=True)]
    )


def _comparisons(scores, measure, baseline, by_label):
    """Yield, for each comparison of one measure, its key, the `PairedComparison`, and the results by repeat."""
    values, runs, labels = scores.per_subject(measure), scores.runs, scores.labels if by_label else [MEAN]
    for contrasts, init, n in scores.cells:
        if init == baseline or (contrasts, baseline, n) not in runs:
            continue
        cells = values[(values["contrasts"] == contrasts) & (values["n_annotated"] == n)]
        single = scores.of(contrasts=contrasts, n_annotated=n).frame
        for label in labels:
            both = cells[cells["label"] == label].pivot(index="subject", columns="init", values="value")
            comparison = paired_comparison(both[init], both[baseline])
            chosen = single if label == MEAN else single[single["label"] == label]
            rest = _differences_of_repeats(chosen, measure.key, init, baseline)
            rest["note"] = _note(comparison, runs[contrasts, init, n], runs[contrasts, baseline, n], init, baseline)
            yield dict(zip((*CELL, "label"), (contrasts, init, n, label), strict=True)), comparison, rest


def _differences_of_repeats(rows, key, init, baseline):
    """Average the difference in each repeat over subjects; folds are pooled by subject, labels averaged first."""
    both = rows.groupby(["repeat", "subject", "init"])[key].mean().unstack("init")
    differences = (both[init] - both[baseline]).groupby("repeat").mean().dropna()
    mean = differences.mean()  # NaN without any repeat
    return {
        "repeats": len(differences),
        "repeat_mean": mean,
        "repeat_sd": differences.std(),  # NaN for a single repeat
        "repeats_same_sign": int((differences * mean > 0).sum()),
    }


def _note(comparison, runs, baseline_runs, init, baseline):
    parts = [comparison.note, f"{comparison.unpaired} without a pair" if comparison.unpaired else ""]
    return "; ".join(part for part in (*parts, unequal_repeats({init: runs, baseline: baseline_runs})) if part)


def unequal_repeats(runs):
    """Name the runs that only one of two initialisations has; empty if both have the same.

    Args:
        runs: Mapping from two initialisations to their sets of runs, from `Scores.runs`.

    Returns:
        Text such as "unequal repeats: constrained 2, random 3 (only random: r2)", or "".
    """
    (one, its), (other, others) = runs.items()
    if its == others:
        return ""
    only = [
        f"only {name}: {', '.join(sorted(alone))}"
        for name, alone in ((one, its - others), (other, others - its))
        if alone
    ]
    return f"unequal repeats: {one} {len(its)}, {other} {len(others)} ({'; '.join(only)})"
