"""Statistics against numbers computed by hand, and against scipy and statsmodels in independent calls."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

from evaluation.scores.scores import mean_interval
from evaluation.statistics import adjust_family, annotation_saved, bland_altman, paired_comparison, stars


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_hand_worked_example():
    """Differences 1, 2, 3, 4: mean 2.5, sd 1.29099, standard error 0.645497, t = 3.872983 with 3 degrees of freedom."""
    result = paired_comparison([2, 4, 6, 8], [1, 2, 3, 4], comparisons=3)
    assert result.mean_difference == 2.5
    assert result.effect_size == pytest.approx(2.5 / 1.2909944)
    assert result.t == pytest.approx(3.8729833)
    assert result.p == pytest.approx(0.0304670, abs=1e-6)
    assert (result.ci_low, result.ci_high) == pytest.approx((2.5 - 3.1824463 * 0.6454972, 2.5 + 3.1824463 * 0.6454972))
    assert result.p_bonferroni == pytest.approx(3 * result.p)
    assert result.p_wilcoxon == pytest.approx(2 / 2**4)  # all four signs agree: the extreme of 16 equally likely cases
    assert (result.pairs, result.unpaired, result.note) == (4, 0, "")


@pytest.mark.parametrize("seed", range(5))
def test_against_scipy_and_statsmodels(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0.8, 0.1, (2, 14))
    result = paired_comparison(a, b)
    expected = stats.ttest_rel(a, b)
    assert (result.t, result.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert result.p_holm == result.p_bonferroni == result.p
    assert (result.ci_low, result.ci_high) == pytest.approx(DescrStatsW(a - b).tconfint_mean(alpha=0.05))
    assert result.p_wilcoxon == pytest.approx(stats.wilcoxon(a, b).pvalue)
    mean, sd, low, high = mean_interval(a)
    assert (mean, sd) == pytest.approx((a.mean(), a.std(ddof=1)))
    assert (low, high) == pytest.approx(DescrStatsW(a).tconfint_mean(alpha=0.05))


def test_exchanging_the_conditions_changes_only_the_sign():
    a, b = np.random.default_rng(3).normal(0.8, 0.1, (2, 9))
    forth, back = paired_comparison(a, b), paired_comparison(b, a)
    assert forth.p == pytest.approx(back.p)
    assert forth.p_wilcoxon == pytest.approx(back.p_wilcoxon)
    assert (forth.t, forth.ci_low) == pytest.approx((-back.t, -back.ci_high))


def test_subjects_without_a_value_are_left_out_and_counted():
    full = paired_comparison([0.9, 0.8, 0.7], [0.5, 0.6, 0.4])
    gaps = paired_comparison([0.9, 0.8, np.nan, 0.7, 0.1], [0.5, 0.6, 0.3, 0.4, np.nan])
    assert (gaps.pairs, gaps.unpaired) == (3, 2)
    assert gaps.p == pytest.approx(full.p)


@pytest.mark.parametrize(
    ("a", "b", "mean", "p", "note"),
    [
        ([], [], None, None, "no pairs"),
        ([np.nan], [0.5], None, None, "no pairs"),
        ([0.9], [0.5], 0.4, None, "one pair: no test"),
        ([0.9, 0.8, 0.7], [0.9, 0.8, 0.7], 0.0, 1.0, "no difference in any subject"),
        ([0.9, 0.8, 0.7], [0.8, 0.7, 0.6], 0.1, None, "the same difference in every subject: no test"),
    ],
)
def test_what_cannot_be_tested_says_so(a, b, mean, p, note):
    result = paired_comparison(a, b, comparisons=4)
    assert result.mean_difference == (None if mean is None else pytest.approx(mean))
    assert result.note == note
    assert result.p == result.p_bonferroni == result.p_wilcoxon == p
    for field in ("t", "ci_low", "effect_size"):
        value = getattr(result, field)
        assert value is None or math.isfinite(value)


def test_ties_and_zero_differences_pass_without_a_warning():
    result = paired_comparison([0.9, 0.8, 0.7, 0.6, 0.5], [0.9, 0.7, 0.6, 0.5, 0.6])
    assert 0 < result.p_wilcoxon <= 1


def test_holm_and_bonferroni_of_a_family_by_hand():
    """p 0.01, 0.04, 0.03: Holm sorts them, 3 x 0.01, 2 x 0.03, 1 x 0.04, and keeps the order."""
    family = [paired_comparison([2, 4, 6, 8.5], [1, 2, 3, 4])] * 3
    family = [type(family[0])(**(vars(one) | {"p": p})) for one, p in zip(family, (0.01, 0.04, 0.03), strict=True)]
    adjusted = adjust_family(family)
    assert [one.p_bonferroni for one in adjusted] == pytest.approx([0.03, 0.12, 0.09])
    assert [one.p_holm for one in adjusted] == pytest.approx([0.03, 0.06, 0.06])
    assert {one.comparisons for one in adjusted} == {3}


def test_a_comparison_that_cannot_be_tested_still_counts_in_the_family():
    testable = paired_comparison([2, 4, 6, 8], [1, 2, 3, 4])
    adjusted = adjust_family([testable, paired_comparison([0.9], [0.5])])
    assert adjusted[0].p_bonferroni == pytest.approx(2 * testable.p)
    assert adjusted[1].p_bonferroni is adjusted[1].p_holm is None
    assert adjust_family([]) == []


def test_mean_interval_of_too_few_values():
    assert all(math.isnan(value) for value in mean_interval([np.nan]))
    mean, *rest = mean_interval([0.5, np.nan])
    assert mean == 0.5
    assert all(math.isnan(value) for value in rest)


def test_stars_at_and_beside_the_bounds():
    assert [stars(p) for p in (None, 1.0, 0.0501, 0.05, 0.01, 0.0011, 0.001, 0.0)] == [
        "", "", "", "*", "**", "**", "***", "***",
    ]  # fmt: skip


# Peak expiratory flow [L/min], large and mini Wright meter; Bland and Altman, Lancet 1986;i:307, table of 17 subjects.
LARGE = (494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427)
MINI = (512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451)


def test_bland_altman_of_the_published_peak_flow_data():
    """Published: mean -2.1, sd 38.8, limits -2.1 -+ 2 x 38.8 = -79.7 and 75.5; CI of the mean -22.0 to 17.8."""
    result = bland_altman(LARGE, MINI)
    assert result.pairs == 17
    assert (round(result.bias, 1), round(result.sd, 1)) == (-2.1, 38.8)
    assert (result.bias_low, result.bias_high) == pytest.approx((-22.0, 17.8), abs=0.1)
    # The paper rounds 1.96 to 2, and rounds mean and sd before adding them.
    bias, sd = round(result.bias, 1), round(result.sd, 1)
    assert (bias - 2 * sd, bias + 2 * sd) == pytest.approx((-79.7, 75.5))
    assert (result.lower, result.upper) == pytest.approx((-2.1 - 1.96 * 38.8, -2.1 + 1.96 * 38.8), abs=0.1)
    # Its intervals for the limits are -114.3 to -45.1 and 40.9 to 110.1, +-34.6, with sd sqrt(3 / n).
    halves = (result.lower - result.lower_low, result.upper_high - result.upper)
    assert halves == pytest.approx((34.6, 34.6), abs=0.3)


def test_bland_altman_of_the_published_blood_pressures():
    """Bland and Altman 1999, Sec. 2: 85 subjects, mean -16.29, sd 19.61 mmHg; their limits and all three intervals."""
    difference = np.random.default_rng(0).normal(size=85)
    difference = -16.29 + 19.61 * (difference - difference.mean()) / difference.std(ddof=1)
    result = bland_altman(difference, np.zeros(85))
    assert (result.lower, result.upper) == pytest.approx((-54.7, 22.1), abs=0.06)
    assert (result.bias_low, result.bias_high) == pytest.approx((-20.5, -12.1), abs=0.06)
    assert (result.lower_low, result.lower_high) == pytest.approx((-61.9, -47.5), abs=0.1)
    assert (result.upper_low, result.upper_high) == pytest.approx((14.9, 29.3), abs=0.15)  # from rounded steps


def test_the_interval_of_a_limit_covers_the_true_limit():
    rng, covered = np.random.default_rng(1), []
    for difference in rng.normal(3.0, 2.0, (1000, 20)):
        result = bland_altman(difference, np.zeros(20))
        covered.append(result.upper_low <= 3.0 + 1.96 * 2.0 <= result.upper_high)
    assert 0.92 < np.mean(covered) < 0.98


def test_bland_altman_against_statsmodels_and_with_the_methods_exchanged():
    rng = np.random.default_rng(4)
    a, b = rng.normal(100, 10, (2, 12))
    forth, back = bland_altman(a, b), bland_altman(b, a)
    assert (forth.bias_low, forth.bias_high) == pytest.approx(DescrStatsW(a - b).tconfint_mean(alpha=0.05))
    assert (forth.lower, forth.lower_low) == pytest.approx((-back.upper, -back.upper_high))
    gaps = bland_altman([*a, np.nan, 5.0], [*b, 1.0, np.nan])
    assert gaps.pairs == 12 and gaps.upper_high == pytest.approx(forth.upper_high)


def test_bland_altman_of_too_few_pairs():
    assert vars(bland_altman([np.nan], [1.0])) == vars(bland_altman([], []))
    assert bland_altman([], []).pairs == 0 and bland_altman([], []).bias is None
    single = bland_altman([3.0], [1.0])
    assert (single.pairs, single.bias, single.sd, single.lower, single.bias_low) == (1, 2.0, None, None, None)
    alike = bland_altman([3.0, 4.0], [1.0, 2.0])
    assert alike.lower == alike.lower_high == alike.upper == alike.bias == 2.0
    with pytest.raises(ValueError, match="same subjects"):
        bland_altman([1.0, 2.0], [1.0])


def test_annotation_saved_as_in_the_renal_abstract():
    """N = 8 with pretraining equals N = 20 from random weights: 60 % less annotation."""
    random = {2: 0.50, 4: 0.60, 8: 0.75, 12: 0.80, 20: 0.86}
    pretrained = {2: 0.70, 4: 0.80, 8: 0.86, 12: 0.87, 20: 0.88}
    assert annotation_saved(pretrained, random, 20) == pytest.approx(0.6)
    assert annotation_saved(pretrained, random, 20, interpolate=False) == pytest.approx(0.6)


def test_annotation_saved_between_tested_n_and_at_the_ends():
    reference = {4: 0.60, 8: 0.70}
    assert annotation_saved({2: 0.5, 4: 0.9}, reference, 8) == pytest.approx(1 - 3 / 8)
    assert annotation_saved({2: 0.5, 4: 0.9}, reference, 8, interpolate=False) == pytest.approx(0.5)
    assert annotation_saved({2: 0.9, 4: 0.9}, reference, 8) == pytest.approx(0.75)
    assert annotation_saved({8: 0.6, 16: 0.8}, reference, 8) == pytest.approx(1 - 12 / 8)
    assert annotation_saved({2: 0.1, 4: 0.2}, reference, 8) is None


def test_mistakes_in_the_arguments():
    with pytest.raises(ValueError, match="same subjects"):
        paired_comparison([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="comparisons is 0"):
        paired_comparison([1, 2], [1, 3], comparisons=0)
    with pytest.raises(ValueError, match="reference_n 20 is not one of"):
        annotation_saved({2: 0.5}, {2: 0.5, 4: 0.6}, 20)
    with pytest.raises(ValueError, match="curve is empty"):
        annotation_saved({}, {2: 0.5}, 2)
