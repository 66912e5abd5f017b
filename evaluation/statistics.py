"""Statistics: paired comparisons on the same test subjects, agreement of volumes, and the annotation saved."""

import dataclasses
import math

import numpy as np

CONFIDENCE = 0.95
LIMIT = 1.96  # standard deviations from the bias to a limit of agreement
STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


@dataclasses.dataclass(frozen=True)
class PairedComparison:
    """Result of `paired_comparison`; None if a quantity is undefined, with the reason in `note`."""

    pairs: int
    unpaired: int
    mean_difference: float | None
    ci_low: float | None
    ci_high: float | None
    effect_size: float | None
    t: float | None
    p: float | None
    p_bonferroni: float | None
    p_holm: float | None
    p_wilcoxon: float | None
    comparisons: int
    note: str


def paired_comparison(a, b, *, comparisons=1):
    """Compare two conditions measured on the same subjects, a - b.

    Args:
        a: One value per subject, `(subjects,)`; NaN if missing.
        b: One value per subject, same order.
        comparisons: Number of comparisons in the family, for the adjusted p values.

    Returns:
        A `PairedComparison`: paired t statistic and two-sided p; that p times `comparisons` (Bonferroni); Holm's p,
        here only bounded by Bonferroni's, because it depends on the whole family (see `adjust_family`);
        Wilcoxon signed-rank p; mean difference with its 95 % CI (t distribution); effect size d_z = mean / sd of the
        differences. Subjects with a NaN on either side are left out and counted in `unpaired`.

    Raises:
        ValueError: For inputs of different length, or fewer than one comparison.

    Reference:
        Paired t-test with Bonferroni correction: Ghoul et al., ISMRM 2024, Table 2. The rest: ours.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"a is {a.shape} and b is {b.shape}; both must list the same subjects")
    if comparisons < 1:
        raise ValueError(f"comparisons is {comparisons}, expected at least 1")
    difference = a - b
    is_paired = np.isfinite(difference)
    outcome = _test(difference[is_paired])
    p_family = None if outcome["p"] is None else min(1.0, outcome["p"] * comparisons)
    return PairedComparison(
        pairs=int(is_paired.sum()),
        unpaired=int((~is_paired).sum()),
        comparisons=comparisons,
        p_bonferroni=p_family,
        p_holm=p_family,
        **outcome,
    )


def _test(difference):
    """Test differences against zero, and name the reason if a t-test is undefined."""
    from scipy import stats

    undefined = dict.fromkeys(("ci_low", "ci_high", "effect_size", "t", "p", "p_wilcoxon"))
    if len(difference) == 0:
        return undefined | {"mean_difference": None, "note": "no pairs"}
    mean = float(difference.mean())
    if len(difference) == 1:
        return undefined | {"mean_difference": mean, "note": "one pair: no test"}
    # Differences that are equal up to rounding have no variance to test against.
    if np.ptp(difference) <= 1e-12 * max(1.0, np.abs(difference).max()):
        known = {"mean_difference": mean, "ci_low": mean, "ci_high": mean}
        if abs(mean) <= 1e-12:
            none = {"effect_size": 0.0, "t": 0.0, "p": 1.0, "p_wilcoxon": 1.0}
            return undefined | known | none | {"note": "no difference in any subject"}
        return undefined | known | {"note": "the same difference in every subject: no test"}
    test = stats.ttest_1samp(difference, 0.0)
    interval = test.confidence_interval(CONFIDENCE)
    return {
        "mean_difference": mean,
        "ci_low": float(interval.low),
        "ci_high": float(interval.high),
        "effect_size": mean / float(difference.std(ddof=1)),
        "t": float(test.statistic),
        "p": float(test.pvalue),
        "p_wilcoxon": float(stats.wilcoxon(difference).pvalue),
        "note": "",
    }


def adjust_family(comparisons):
    """Adjust the p values of a family of comparisons, Bonferroni and Holm.

    Args:
        comparisons: List of `PairedComparison`; those without a p value still count in the size of the family.

    Returns:
        The same list with `comparisons`, `p_bonferroni` and `p_holm` of the whole family.
    """
    if not comparisons:
        return []
    from statsmodels.stats.multitest import multipletests

    known = [1.0 if comparison.p is None else comparison.p for comparison in comparisons]
    bonferroni, holm = (multipletests(known, method=method)[1] for method in ("bonferroni", "holm"))
    adjusted = []
    for comparison, p_bonferroni, p_holm in zip(comparisons, bonferroni, holm, strict=True):
        if comparison.p is None:
            p_bonferroni = p_holm = None
        else:
            p_bonferroni, p_holm = float(p_bonferroni), float(p_holm)
        adjusted.append(
            dataclasses.replace(comparison, comparisons=len(comparisons), p_bonferroni=p_bonferroni, p_holm=p_holm)
        )
    return adjusted


def stars(p):
    """Mark an adjusted p value.

    Args:
        p: In [0, 1], or None if there is no test.

    Returns:
        `***` up to 0.001, `**` up to 0.01, `*` up to 0.05 (Ghoul et al., ISMRM 2024: * for p <= 0.05), otherwise "".
    """
    return next((mark for bound, mark in STARS if p is not None and p <= bound), "")


@dataclasses.dataclass(frozen=True)
class BlandAltman:
    """Result of `bland_altman`, in the unit of the measurements; None if a quantity is undefined."""

    pairs: int
    bias: float | None = None
    bias_low: float | None = None
    bias_high: float | None = None
    sd: float | None = None
    lower: float | None = None
    lower_low: float | None = None
    lower_high: float | None = None
    upper: float | None = None
    upper_low: float | None = None
    upper_high: float | None = None


def bland_altman(measured, reference):
    """Compute the agreement of a measurement with a reference: bias and 95 % limits of agreement, bias ± 1.96 sd.

    se(bias)^2 = sd^2 / n,  se(limit)^2 = sd^2 (1 / n + 1.96^2 / (2 (n - 1))),  CI = value ± t_(n-1) se.

    Args:
        measured: One value per subject, `(subjects,)`; NaN if missing.
        reference: One value per subject, same order and unit.

    Returns:
        A `BlandAltman` of measured minus reference: bias, standard deviation of the differences, both limits, and 95 %
        CIs of bias and limits. Pairs with a NaN are left out; a single pair has a bias but no spread.

    Raises:
        ValueError: For inputs of different length.

    Reference:
        Bland and Altman, Stat. Methods Med. Res. 1999;8:135, Sec. 2. (Their Lancet paper of 1986 uses 2 instead of
        1.96, and sd^2 3 / n as the variance of a limit.)
    """
    from scipy import stats

    measured, reference = np.asarray(measured, np.float64), np.asarray(reference, np.float64)
    if measured.shape != reference.shape or measured.ndim != 1:
        raise ValueError(f"measured is {measured.shape}, reference {reference.shape}; both must list the same subjects")
    difference = measured - reference
    difference = difference[np.isfinite(difference)]
    n = len(difference)
    if n == 0:
        return BlandAltman(pairs=0)
    bias = float(difference.mean())
    if n == 1:
        return BlandAltman(pairs=1, bias=bias)
    sd = float(difference.std(ddof=1))
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    half, half_limit = t * sd / math.sqrt(n), t * sd * math.sqrt(1 / n + LIMIT**2 / (2 * (n - 1)))
    lower, upper = bias - LIMIT * sd, bias + LIMIT * sd
    return BlandAltman(
        pairs=n,
        bias=bias,
        bias_low=bias - half,
        bias_high=bias + half,
        sd=sd,
        lower=lower,
        lower_low=lower - half_limit,
        lower_high=lower + half_limit,
        upper=upper,
        upper_low=upper - half_limit,
        upper_high=upper + half_limit,
    )


def annotation_saved(curve, reference_curve, reference_n, *, interpolate=True):
    """Compute the share of annotated subjects saved: 1 - N / reference_n, N being the fewest with an equal Dice.

    Args:
        curve: Mapping from N annotated subjects to mean Dice, for the pretrained network.
        reference_curve: The same for the network to compare with.
        reference_n: N of the reference whose Dice is to be reached; one of `reference_curve`.
        interpolate: True: `curve` is interpolated linearly between tested N. False: only tested N count.

    Returns:
        A fraction, negative if `curve` needs more subjects than the reference; None if it never reaches the goal. A
        curve that reaches the goal at its smallest N gives a lower bound: nothing is extrapolated.

    Raises:
        ValueError: If `reference_n` is not on the reference curve, or `curve` is empty.

    Reference:
        "60 % less annotation" = 1 - 8/20, Ghoul et al., ISMRM 2024. Interpolation: ours.
    """
    if reference_n not in reference_curve:
        raise ValueError(f"reference_n {reference_n} is not one of the reference curve's N ({sorted(reference_curve)})")
    if not curve:
        raise ValueError("curve is empty")
    goal = reference_curve[reference_n]
    before = None
    for n in sorted(curve):
        if curve[n] >= goal:
            if interpolate and before is not None:
                n = before + (n - before) * (goal - curve[before]) / (curve[n] - curve[before])
            return 1 - n / reference_n
        before = n
    return None
