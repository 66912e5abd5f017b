"""Trials of settings, scored on validation subjects: one table, and the winner of each initialisation.

Averages are taken in this order: over the repeats of a subject, then its classes, then subjects (a validation subject
of several folds counts once in each). Initialisations are not compared with one another here: each gets its own best
trial, and winners are named only if all had the same trials with the same runs.
"""

import dataclasses
import itertools
import math

import yaml

from evaluation.report.formats import number
from evaluation.report.tables import Table, mean_sd, to_markdown
from evaluation.scores.cell_checks import check_metrics, refuse_mixed_splits, refuse_other_references
from evaluation.scores.measures import OF_A_CELL, SEGMENTATION
from evaluation.scores.scores import files_of, in_grid_order, rows_of
from utils.checks import counted
from utils.runs import atomic_path, read_json

TRIALS = dataclasses.replace(
    SEGMENTATION,
    folder="trials",
    cells="*/*/*/n*/r*",
    script="finetune_segmentation.py --score-on validation",
    words=("trial", "weights_kept"),
    of_a_cell=(*OF_A_CELL, "updates"),
    untested=("train_subjects",),
)
RUN = ["contrasts", "n_annotated", "repeat", "split"]
DEAD = 0.2  # Dice of a class, mean over the subjects of a run, below which the class was not learned
ALL = "all"
KEPT = {"best": "best of validation", "last": "last"}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The table of trials and its result.

    Attributes:
        table: `tables.Table`.
        winners: Init -> its best trial; empty while runs are missing.
        missing: One sentence for each init and trial that lacks runs that others have.
        outdated: Folders of cells that were left out because they were made with other settings.
    """

    table: Table
    winners: dict
    missing: list
    outdated: list

    def conclusion(self):
        """Return the winners as YAML for the section `finetuning`, or what is missing."""
        if self.missing:
            return "\n".join(["No winner is named: every init needs the same trials and runs.", *self.missing])
        text = yaml.safe_dump({"chosen": self.winners}, sort_keys=False)
        return "".join(f"  {line}\n" for line in text.splitlines()).rstrip("\n")


def collect_trials(work_dir, is_current):
    """Read the finished trials below a work dir, over all folds.

    Args:
        work_dir: Folder with `trials/` or `fold<K>/trials/`.
        is_current: Function of the content of metrics.json: whether the current config would make the same cell.

    Returns:
        `(results, outdated)`: a DataFrame like that of `Scores` with the further columns `trial`, `weights_kept` and
        `updates`, or None if there are no results; and the folders that `is_current` rejected.

    Raises:
        InputError: A file is not readable, or cells have different splits within a fold or different references for a
            subject.
    """
    import pandas

    cells = {file: read_json(file) for file in files_of(work_dir, TRIALS)}
    for file, metrics in cells.items():
        check_metrics(file, metrics, TRIALS)
    current = {file: metrics for file, metrics in cells.items() if is_current(metrics)}
    outdated = [file.parent for file in cells if file not in current]
    if not current:
        return None, outdated
    refuse_mixed_splits(current, work_dir)
    refuse_other_references(current, TRIALS.references)
    results = pandas.DataFrame([row for file in current for row in rows_of(file, current[file], work_dir, TRIALS)])
    numbers = ["dice", "duration_s", "updates"]
    results[numbers] = results[numbers].astype(float)
    return results, outdated


def compare(results, asked, inits, trials, outdated=()):
    """Compare trials.

    Args:
        results: From `collect_trials`.
        asked: Requested cells, `(trial, contrasts, init, n, repeat, split)`.
        inits: Initialisations of the config, all of which need the same trials.
        trials: Trials of the config, in the order of the rows.
        outdated: Folders that were left out.

    Returns:
        A `Comparison`.
    """
    missing = missing_runs(results, asked, inits)
    numbers = summarise(results, in_grid_order(set(results["init"]), inits), trials)
    winners = {} if missing else winners_of(numbers)
    numbers["is_winner"] = [winners.get(row.init) == row.trial for row in numbers.itertuples()]
    table = Table("table", "Trials, validation subjects", _caption(results, outdated), numbers, _text(numbers))
    return Comparison(table, winners, missing, list(outdated))


def missing_runs(results, asked, inits):
    """Report inits that lack trials, or runs of a trial, that others have or that were requested.

    Args:
        results: From `collect_trials`.
        asked: As for `compare`.
        inits: Initialisations that count even without any trial.

    Returns:
        List of sentences, one per init and trial; empty if every init has all trials with all runs.
    """
    cells = results.drop_duplicates("folder")
    there = set(cells[["init", "trial", *RUN]].itertuples(index=False, name=None))
    wanted = [(init, trial, contrasts, n, repeat, split) for trial, contrasts, init, n, repeat, split in asked]
    known = [*wanted, *sorted(there)]
    every = [list(dict.fromkeys(cell[place] for cell in known)) for place in (0, 1)]
    every[0] = list(dict.fromkeys([*inits, *every[0]]))
    runs, sentences = dict.fromkeys(cell[2:] for cell in known), []
    for init, trial in itertools.product(*every):
        lacking = [run for run in runs if (init, trial, *run) not in there]
        if lacking:
            contrasts, n, repeat, split = lacking[0]
            first = f"{split}/{contrasts}/n{n:02d}/r{repeat}".lstrip("/")
            sentences.append(f"{init}, trial {trial}: {len(lacking)} of {counted(len(runs), 'run')} missing ({first})")
    return sentences


def summarise(results, inits, trials):
    """Summarise every trial by contrasts, init and N, and by init over all contrasts and N.

    Returns:
        DataFrame with `contrasts`, `init`, `n_annotated`, `trial`, `dice` (mean), `sd_repeats` (standard deviation of
        the means of single repeats, NaN for one), `dead` (classes below `DEAD`, counted in every run) and `dead_names`,
        `worst` and `worst_dice`, `runs`, `subjects`, `mean_s`, `updates` and `weights_kept`. If there are several
        contrasts or N, rows with `all` for both follow: the mean over these rows with equal weights.
    """
    import pandas

    groups = sorted(set(results[["contrasts", "n_annotated"]].itertuples(index=False, name=None)))
    names = in_grid_order(set(results["trial"]), trials)
    rows = []
    for (contrasts, n), init, trial in itertools.product(groups, inits, names):
        is_part = (results[["contrasts", "n_annotated", "init", "trial"]] == (contrasts, n, init, trial)).all(axis=1)
        if is_part.any():
            about = {"contrasts": contrasts, "init": init, "n_annotated": n, "trial": trial}
            rows.append(about | _statistics(results[is_part]))
    for init, trial in itertools.product(inits, names) if len(groups) > 1 else ():
        parts = pandas.DataFrame([row for row in rows if (row["init"], row["trial"]) == (init, trial)])
        if len(parts):
            about = {"contrasts": ALL, "init": init, "n_annotated": ALL, "trial": trial}
            rows.append(about | _over_groups(parts))
    return pandas.DataFrame(rows)


def _statistics(part):
    """Compute the statistics for one input set, init, N and trial."""
    by_subject = part.groupby(["split", "subject", "label"], sort=False)["dice"].mean()
    by_label = by_subject.groupby("label", sort=False).mean()
    by_run = part.groupby(["split", "repeat", "label"], sort=False)["dice"].mean()
    dead = by_run[by_run < DEAD].groupby("label", sort=False).size()
    repeats = [_mean_dice(one["dice"].groupby([one["split"], one["subject"]])) for _, one in part.groupby("repeat")]
    cells, known = part.drop_duplicates("folder"), by_label.notna().any()
    return {
        "dice": _mean_dice(by_subject.groupby(["split", "subject"])),
        "sd_repeats": _deviation(repeats),
        "dead": int(dead.sum()),
        "dead_names": ", ".join(f"{label} ({count})" for label, count in dead.items()),
        "worst": by_label.idxmin() if known else "",
        "worst_dice": by_label.min(),
        "runs": len(cells),
        "subjects": part["subject"].nunique(),
        "mean_s": cells["duration_s"].mean(),
        "updates": cells["updates"].mean(),
        "weights_kept": ", ".join(sorted(set(cells["weights_kept"]))),
    }


def _mean_dice(by_subject):
    """Return the mean over subjects of their mean over classes."""
    return float(by_subject.mean().mean())


def _deviation(values):
    if len(values) < 2:
        return math.nan
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _over_groups(rows):
    """Build one row for all contrasts and N of an init and trial, with equal weights."""
    lowest = rows.loc[rows["worst_dice"].idxmin()] if rows["worst_dice"].notna().any() else rows.iloc[0]
    return {
        "dice": rows["dice"].mean(),
        "sd_repeats": math.nan,
        "dead": int(rows["dead"].sum()),
        "dead_names": "",
        "worst": lowest["worst"],
        "worst_dice": lowest["worst_dice"],
        "runs": int(rows["runs"].sum()),
        "subjects": int(rows["subjects"].max()),
        "mean_s": (rows["mean_s"] * rows["runs"]).sum() / rows["runs"].sum(),
        "updates": (rows["updates"] * rows["runs"]).sum() / rows["runs"].sum(),
        "weights_kept": ", ".join(dict.fromkeys(rows["weights_kept"])),
    }


def winners_of(numbers):
    """Return the trial with the highest mean Dice for each init, over all contrasts and N; the first of equal ones.

    An init whose trials have no Dice (classes absent from both reference and prediction) has no winner.
    """
    decisive = numbers[numbers["n_annotated"] == ALL] if (numbers["n_annotated"] == ALL).any() else numbers
    best = {}
    for row in decisive.itertuples():
        if row.dice > best.get(row.init, (-1.0,))[0]:
            best[row.init] = row.dice, row.trial
    return {init: trial for init, (_, trial) in best.items()}


def _text(numbers):
    import pandas

    return pandas.DataFrame(
        [
            {
                "Contrasts": row.contrasts,
                "Init": row.init,
                "N": str(row.n_annotated),
                "Trial": row.trial,
                "Dice": mean_sd({"mean": row.dice, "sd": row.sd_repeats}, 3).removesuffix(" ± -"),
                "Dead": f"{row.dead}: {row.dead_names}" if row.dead_names else str(row.dead),
                "Worst class": f"{row.worst} {number(row.worst_dice, '.3f')}".strip(),
                "Runs": str(row.runs),
                "Updates": number(row.updates, ".0f"),
                "Mean [s]": number(row.mean_s, ".1f"),
                "Weights": KEPT.get(row.weights_kept, row.weights_kept),
            }
            for row in numbers.itertuples()
        ]
    )


def _caption(results, outdated):
    per_split = results.groupby("split")["subject"].nunique()
    counts = counted(int(per_split.max()), "annotated validation subject")
    where = f" in each of {counted(len(per_split), 'fold')}" if len(per_split) > 1 else ""
    parts = [
        f"Scored on {counts}{where}, not on test subjects. Dice: mean over subjects and classes, the repeats of a "
        "subject averaged first, ± standard deviation over repeats. Dead: classes of single runs whose Dice, mean over "
        f"subjects, is below {DEAD}. Updates and seconds: mean per run."
    ]
    if (results["weights_kept"] == "best").any():
        parts.append(
            "Weights, best of validation: the same subjects chose the epoch whose weights are scored here, so these "
            "numbers are higher than those of other subjects will be."
        )
    parts.append("The winner was chosen on the same subjects: its Dice here is not a result to report.")
    if len(per_split) > 1 or per_split.index[0]:
        parts.append("Cross-validation: a validation subject of one fold is a test subject of another.")
    if outdated:
        parts.append(f"Left out, because another config or seed made them: {counted(len(outdated), 'cell')}.")
    return " ".join(parts)


def write_trials(comparison, folder):
    """Write `table.csv` (full precision) and `table.md` (winners in bold, then the lines to add to the config)."""
    table = comparison.table
    text = table.text.astype(object).copy()
    for column in ("Trial", "Dice"):
        pairs = zip(text[column], table.numbers["is_winner"], strict=True)
        text[column] = [f"**{value}**" if is_winner else value for value, is_winner in pairs]
    ending = comparison.conclusion()
    if comparison.missing:
        first, *lines = ending.splitlines()
        ending = "\n".join([first, "", *(f"- {line}" for line in lines)])
    else:
        ending = f"Below `finetuning:` in the config:\n\n```yaml\n{ending}\n```"
    markdown = f"# {table.title}\n\n{to_markdown(dataclasses.replace(table, text=text))}\n{ending}\n"
    for name, content in (("table.csv", table.numbers.to_csv(index=False)), ("table.md", markdown)):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
