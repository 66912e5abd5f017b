"""The table of trials against loops over single scores."""

import itertools
import math
import statistics

import numpy as np
import pandas
import pytest
import yaml

from evaluation.scores.trials import compare, summarise, write_trials

INITS, TRIALS = ["random", "constrained"], ["slow", "fast"]
RUNS = list(itertools.product(["t1", "t2"], [2, 8], [0, 1, 2], ["fold0", "fold1"]))
VALIDATION = {"fold0": ["a", "b"], "fold1": ["b", "c"]}  # one subject is for validation in both folds
LABELS = ["liver", "spleen"]


def make_results(seed=0, cells=None):
    """Make the scores of a grid, some missing, some low: one row per cell, subject and label."""
    generator, rows = np.random.default_rng(seed), []
    for init, trial, (contrasts, n, repeat, split) in cells or itertools.product(INITS, TRIALS, RUNS):
        shared = {"split": split, "contrasts": contrasts, "init": init, "n_annotated": n, "repeat": repeat}
        shared |= {"trial": trial, "folder": f"{split}/{trial}/{contrasts}/{init}/{n}/{repeat}", "weights_kept": "best"}
        shared |= {"duration_s": generator.uniform(1, 9), "updates": 300.0 if trial == "slow" else 400.0}
        for subject, label in itertools.product(VALIDATION[split], LABELS):
            dice = generator.uniform(0, 0.4) if label == "spleen" else generator.uniform(0.4, 1)
            rows.append(shared | {"subject": subject, "label": label, "dice": dice})
    results = pandas.DataFrame(rows)
    results.loc[generator.choice(len(results), 5, replace=False), "dice"] = math.nan
    return results


def rows_of(results, **wanted):
    return [r for r in results.to_dict("records") if all(r[key] == value for key, value in wanted.items())]


def mean(values):
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def slow_dice(rows):
    """Average over repeats, then classes, then subjects; a subject in two folds counts twice."""
    subjects = sorted({(r["split"], r["subject"]) for r in rows})
    return mean(
        mean(
            mean(r["dice"] for r in rows if (r["split"], r["subject"], r["label"]) == (*subject, label))
            for label in LABELS
        )
        for subject in subjects
    )


@pytest.mark.parametrize("seed", range(3))
def test_every_number_is_that_of_a_loop(seed):
    results = make_results(seed)
    numbers = summarise(results, INITS, TRIALS)
    for row in numbers[numbers["n_annotated"] != "all"].itertuples():
        rows = rows_of(results, contrasts=row.contrasts, n_annotated=row.n_annotated, init=row.init, trial=row.trial)
        assert row.dice == pytest.approx(slow_dice(rows))
        repeats = [slow_dice([r for r in rows if r["repeat"] == repeat]) for repeat in range(3)]
        assert row.sd_repeats == pytest.approx(statistics.stdev(repeats))
        dead = dict.fromkeys(LABELS, 0)
        for label, repeat, split in itertools.product(LABELS, range(3), VALIDATION):
            values = [r["dice"] for r in rows if (r["label"], r["repeat"], r["split"]) == (label, repeat, split)]
            dead[label] += mean(values) < 0.2
        assert row.dead == sum(dead.values())
        assert row.dead_names == ", ".join(f"{label} ({count})" for label, count in dead.items() if count)
        assert row.worst == "spleen" and row.runs == 6 and row.subjects == 3
        seconds = {r["folder"]: r["duration_s"] for r in rows}
        assert row.mean_s == pytest.approx(mean(seconds.values()))
        assert row.updates == {"slow": 300, "fast": 400}[row.trial]
    overall = numbers[numbers["n_annotated"] == "all"]
    assert len(overall) == 4
    for row in overall.itertuples():
        parts = [
            slow_dice(rows_of(results, contrasts=c, n_annotated=n, init=row.init, trial=row.trial))
            for c, n in itertools.product(["t1", "t2"], [2, 8])
        ]
        assert row.dice == pytest.approx(mean(parts)) and row.runs == 24


def test_the_winner_of_an_init_has_the_highest_mean_over_contrasts_and_n(tmp_path):
    results = make_results().assign(dice=0.5)
    is_better = (results["init"] == "random") & (results["trial"] == "fast")
    results.loc[is_better & (results["n_annotated"] == 2), "dice"] = 0.1
    results.loc[is_better & (results["n_annotated"] == 8), "dice"] = 0.95
    comparison = compare(results, [], INITS, TRIALS)
    assert comparison.winners == {"random": "fast", "constrained": "slow"}, "slow comes first where both are equal"
    write_trials(comparison, tmp_path)
    text = (tmp_path / "table.md").read_text()
    bold = [line for line in text.splitlines() if "**" in line]
    assert len(bold) == 2 * 5 and all("fast" in line if "random" in line else "slow" in line for line in bold)
    block = text.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(block) == {"chosen": comparison.winners} and block.startswith("  chosen:")
    assert "Scored on 2 annotated validation subjects in each of 2 folds, not on test subjects." in text
    assert "a validation subject of one fold is a test subject of another" in text
    numbers = pandas.read_csv(tmp_path / "table.csv")
    assert numbers["is_winner"].sum() == 10 and "**" not in comparison.table.text.to_string()


CELLS = list(itertools.product(INITS, TRIALS, RUNS))
LACKING = {
    "a trial of an init": ([c for c in CELLS if c[:2] != ("random", "fast")], 1, "random, trial fast: 24"),
    "a single run": (CELLS[:-1], 1, "constrained, trial fast: 1 of 24 runs missing (fold1/t2/n08/r2)"),
    "runs of a trial": ([c for c in CELLS if c[1] != "fast" or c[2][1] == 8], 2, "random, trial fast: 12"),
    "an init": ([c for c in CELLS if c[0] == "random"], 2, "constrained, trial fast: 24"),
}


@pytest.mark.parametrize(("cells", "count", "said"), LACKING.values(), ids=LACKING)
def test_no_winner_while_trials_are_unequal(cells, count, said, tmp_path):
    comparison = compare(make_results(cells=cells), [], INITS, TRIALS)
    assert comparison.winners == {} and len(comparison.missing) == count
    assert comparison.missing[0].startswith(said) and said in comparison.conclusion()
    write_trials(comparison, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "**" not in text and "chosen:" not in text and said in text


def test_requested_results_that_do_not_exist_are_missing():
    asked = [("fast", "t1", "random", 2, 3, "fold0")]
    comparison = compare(make_results(), asked, INITS, TRIALS)
    assert len(comparison.missing) == 4, "a run that one init was to have is asked of all of them, with every trial"
    assert all("1 of 25 runs missing (fold0/t1/n02/r3)" in line for line in comparison.missing)


def test_without_a_score_there_is_no_spread_no_worst_class_and_no_winner():
    results = make_results(cells=[(init, "slow", ("t1", 2, 0, "fold0")) for init in INITS]).assign(dice=math.nan)
    comparison = compare(results, [], INITS, TRIALS)
    assert list(comparison.table.text["Dice"]) == ["-"] * 2 and list(comparison.table.text["Worst class"]) == ["-"] * 2
    assert comparison.winners == {} and comparison.missing == []
