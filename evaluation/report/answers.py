"""What a report states first: which initialisation is ahead at which N, by how much, and whether repeats agree."""

from evaluation.report.formats import interval, number
from evaluation.scores.comparisons import BASELINE, compare_inits
from evaluation.statistics import STARS
from utils.checks import counted

LEVEL = STARS[-1][0]  # of the adjusted p value, as for the stars in the tables
RULE = (
    "Ahead or behind: the difference over test subjects is significant (paired two-sided t-test, p ≤ {level:g} after "
    "Bonferroni's correction for {family}). Of several that differ at an N, the one furthest ahead and the one "
    "furthest behind are named. This holds for the networks that were trained. Whether other trainings would agree is "
    "what the repeats say; K of K agree by chance with probability 1 / 2^(K-1). No difference shown is not the same as "
    "no difference."
)


def answers(scores, measure):
    """State what the study found, in one sentence for each input set.

    Args:
        scores: A `Scores`.
        measure: The decisive measure, for which higher is better; its mean over labels is compared.

    Returns:
        `(sentences, rule)`: list of sentences, and what their words mean ("" if there is nothing to compare).
    """
    compared = compare_inits(scores, measures=(measure,))
    by_contrasts = dict(list(compared.groupby("contrasts"))) if len(compared) else {}
    sentences = [_sentence(name, by_contrasts.get(name), scores, measure) for name in scores.by_contrasts()]
    return sentences, RULE.format(level=LEVEL, family=counted(len(compared), "comparison")) if len(compared) else ""


def _sentence(contrasts, compared, scores, measure):
    what = f"{scores.note} {contrasts}, {_named(scores, measure)}:".strip()
    if compared is None:
        return f"{what} nothing to compare, because no other initialisation shares an N with {BASELINE}."
    shown, hidden, untested = [], {}, []  # `hidden`: compared inits -> every N at which none of them differs
    for n, at_n in compared.groupby("n_annotated"):
        tested = at_n[at_n["p_bonferroni"].notna()]
        differing = tested[tested["p_bonferroni"] <= LEVEL]
        if len(differing):
            shown += _furthest(n, differing, measure.digits)
        elif len(tested):
            hidden.setdefault(tuple(tested["init"]), []).append(n)
        else:
            untested.append(n)
    parts = [*shown, *(_not_shown(inits, numbers) for inits, numbers in hidden.items())]
    if untested:
        parts.append(f"no test is possible at N = {_listed(untested)}")
    sentence = f"{what} {'; '.join(parts)}."
    if compared["repeats"].max() == 1:
        sentence += " There is one repeat, which cannot tell whether another training would agree."
    return sentence


def _named(scores, measure):
    """Name a measure, the part of the volume it covers, and what it is averaged over."""
    inside, averaged = (f" inside the {measure.region}", "target contrasts") if measure.region else ("", "labels")
    return f"{measure.name}{inside}" + (f" (mean over {averaged})" if len(scores.labels) > 1 else "")


def _not_shown(inits, numbers):
    """Say that none of some initialisations is shown to differ from the baseline at some N."""
    who = f"none of {_listed(inits)} is" if len(inits) > 1 else f"{inits[0]} is not"
    return f"{who} shown to differ from {BASELINE} at N = {_listed(numbers)}"


def _furthest(n, differing, digits):
    """Describe the differences of the init that is furthest ahead at an N and of the one furthest behind."""
    by_size = differing.sort_values("mean_difference", ascending=False, kind="stable")
    ahead, behind = by_size[by_size["mean_difference"] > 0][:1], by_size[by_size["mean_difference"] <= 0][-1:]
    return [_difference(n, row, digits) for part in (ahead, behind) for _, row in part.iterrows()]


def _difference(n, row, digits):
    """Say who is ahead at an N, by how much, and in how many repeats."""
    word, sign = ("ahead of", 1) if row["mean_difference"] > 0 else ("behind", -1)
    low, high = sorted((sign * row["ci_low"], sign * row["ci_high"]))
    agree = row["repeats_same_sign"]
    if row["repeat_mean"] * sign < 0:  # repeats that only one of the two has can reverse the sign
        agree = row["repeats"] - agree
    only = "" if agree == row["repeats"] else "only "
    repeats = f"{word.split()[0]} in {only}{agree} of {row['repeats']} repeats"
    repeats = {0: "no repeat in common", 1: "one repeat"}.get(row["repeats"], repeats)
    return (
        f"at N = {n} {row['init']} is {word} {BASELINE} by {number(sign * row['mean_difference'], f'.{digits}f')} "
        f"(95 % CI {interval(low, high, f'.{digits}f')}; {repeats})"
    )


def _listed(items):
    """Write `a`, `a and b`, `a, b and c`."""
    *others, last = map(str, items)
    return f"{', '.join(others)} and {last}" if others else last
