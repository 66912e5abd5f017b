"""The sentences at the top of a report, for differences chosen by hand."""

import numpy as np
import pandas
import pytest

from evaluation.report.answers import answers
from evaluation.scores.measures import DICE, SYNTHESIS, measures_in
from tests.evaluation.made_scores import as_scores

SUBJECTS = [f"s{number}" for number in range(8)]


def make_scores(differences, repeats=3, inits=("random", "ccl"), subjects=SUBJECTS, **about):
    """Make scores: 0.5 at random and `{(init, n): difference of each repeat}`, with some spread between subjects."""
    rows = []
    for (init, n), of_repeats in ({("random", n): [0.0] * repeats for _, n in differences} | differences).items():
        for repeat, difference in enumerate(of_repeats):
            for number, subject in enumerate(subjects):
                spread = 0.0 if init == "random" else 0.004 * (number - (len(subjects) - 1) / 2)
                key = {"contrasts": "t2", "init": init, "n_annotated": n, "repeat": repeat, "subject": subject}
                rows.append(key | {"label": "x", "dice": 0.5 + difference + spread})
    return as_scores(pandas.DataFrame(rows), inits=inits, **about)


def test_who_is_ahead_where_by_how_much_and_in_how_many_repeats():
    """Eight subjects, differences 0.1 + 0.004 k, k from -3.5 to 3.5: sd 0.0098, half of the interval 0.0082."""
    scores = make_scores({("ccl", 2): [0.1, 0.3, -0.1], ("ccl", 4): [-0.05, -0.06, -0.07], ("ccl", 8): [0.001] * 3})
    (sentence,), rule = answers(scores, DICE)
    assert sentence == (
        "t2, Dice: at N = 2 ccl is ahead of random by 0.100 (95 % CI 0.092 to 0.108; ahead in only 2 of 3 repeats); "
        "at N = 4 ccl is behind random by 0.060 (95 % CI 0.052 to 0.068; behind in 3 of 3 repeats); "
        "ccl is not shown to differ from random at N = 8."
    )
    assert "Bonferroni" in rule and "3 comparisons" in rule and "No difference shown is not the same" in rule


def test_the_absence_of_a_difference_is_stated():
    same = {("ccl", n): [0.001, -0.001, 0.0] for n in (2, 4, 8)}
    (sentence,), _ = answers(make_scores(same), DICE)
    assert sentence == "t2, Dice: ccl is not shown to differ from random at N = 2, 4 and 8."
    (sentence,), _ = answers(make_scores(same | {("other", 2): [0.0] * 3, ("other", 8): [0.0] * 3}), DICE)
    assert sentence == (
        "t2, Dice: none of ccl and other is shown to differ from random at N = 2 and 8; "
        "ccl is not shown to differ from random at N = 4."
    ), "an initialisation is named only at the N at which it was run"


def test_one_repeat_cannot_tell():
    (sentence,), _ = answers(make_scores({("ccl", 2): [0.1]}, repeats=1, is_simulated=True), DICE)
    assert sentence == (
        "Simulated scans. t2, Dice: at N = 2 ccl is ahead of random by 0.100 (95 % CI 0.092 to 0.108; one repeat). "
        "There is one repeat, which cannot tell whether another training would agree."
    )


def test_of_several_inits_the_ends_are_named():
    found = {"ccl": 0.1, "a": 0.2, "b": -0.1, "c": -0.2, "d": 0.0}
    found = {(init, 2): [difference] * 3 for init, difference in found.items()}
    (sentence,), _ = answers(make_scores(found), DICE)
    assert "a is ahead of random by 0.200" in sentence and "c is behind random by 0.200" in sentence
    assert "ccl" not in sentence and "b is" not in sentence and "shown" not in sentence


def test_repeats_that_only_one_side_has_are_not_counted():
    """Over all repeats, ccl is ahead; in the one that both have, it is behind."""
    scores = make_scores({("ccl", 2): [-0.05, 0.35]}, repeats=1)
    (sentence,), _ = answers(scores, DICE)
    assert "ccl is ahead of random by 0.150" in sentence and "; one repeat)" in sentence


def test_what_cannot_be_compared_or_tested_says_so():
    scores = make_scores({("ccl", 2): [0.1] * 3})
    alone = scores.only(scores.frame["init"] == "ccl")
    assert answers(alone, DICE) == (
        ["t2, Dice: nothing to compare, because no other initialisation shares an N with random."],
        "",
    )
    (sentence,), _ = answers(make_scores({("ccl", 2): [0.1] * 3}, subjects=["s0"]), DICE)
    assert sentence == "t2, Dice: no test is possible at N = 2."


@pytest.mark.parametrize("seed", range(3))
def test_the_signs_by_repeat_equal_plain_loops(seed):
    rng = np.random.default_rng(seed)
    of_repeats = rng.normal(0.06, 0.1, 5)
    (sentence,), _ = answers(make_scores({("ccl", 2): of_repeats.tolist()}, repeats=5), DICE)
    is_ahead = of_repeats.mean() > 0
    agree = sum((difference > 0) == is_ahead for difference in of_repeats)
    assert f"{'ahead' if is_ahead else 'behind'} in {'' if agree == 5 else 'only '}{agree} of 5 repeats" in sentence


def test_synthesis_is_judged_inside_the_mask():
    scores = make_scores({("ccl", 2): [0.1] * 3})
    ssim = measures_in("mask")[0]
    frame = scores.frame.rename(columns={"dice": ssim.key})
    (sentence,), _ = answers(as_scores(frame, task=SYNTHESIS), ssim)
    assert sentence.startswith("t2, SSIM inside the mask: at N = 2 ccl is ahead of random by 0.100")
    (sentence,), _ = answers(as_scores(pandas.concat([frame, frame.assign(label="y")]), task=SYNTHESIS), ssim)
    assert sentence.startswith("t2, SSIM inside the mask (mean over target contrasts): at N = 2 ccl is ahead")
