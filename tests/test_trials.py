"""Trials of settings from packed slices to the table, on a cohort whose test subjects cannot be read."""

import json
import logging
from collections import Counter

import h5py
import numpy as np
import pandas
import pytest
import yaml

from data.h5_store import SliceStore
from evaluation.results import files_of
from evaluation.trials import TRIALS
from models.weights import read_weights, save_weights
from tests.bad_input.cohort import CONFIG, write_cohort, write_config
from tests.bad_input.harness import run
from training.grid import Grid
from utils.config import load_config

STEP = "finetune_segmentation"
TEST = "sub-3"
TRAINING = {"epochs": 2, "steps_per_epoch": 2, "batch_size": 2, "learning_rate": 0.001}
FINETUNING = CONFIG["finetuning"] | {
    "repeats": 2,
    "training": TRAINING,
    "trials": {"as_it_stands": {}, "faster": {"training.learning_rate": 0.02, "training.epochs": 3}},
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """The config of a work dir after three steps, without names of subjects, and spoilt test subjects."""
    folder = tmp_path_factory.mktemp("trials")
    config = write_cohort(folder)
    content = yaml.safe_load(config.read_text())
    (folder / "data" / "splits.json").write_text(json.dumps(content["data"]["splits"]))
    content["data"]["splits"] = "splits.json"
    write_config(folder, data=content["data"], finetuning=FINETUNING)
    for step in ("generate_constraint_maps", "generate_h5_pretraining", "constrained_contrastive_learning"):
        assert run(step, "--config", config).code == 0
    for file in (folder / "data" / TEST).iterdir():
        file.write_bytes(b"not an image")
    rows = SliceStore(folder / "work" / "h5" / "annotated.h5").rows_of([TEST])
    with h5py.File(folder / "work" / "h5" / "annotated.h5", "r+") as file:
        file["label"][rows] = 99  # refused by whoever reads it
        file["img"][rows] = np.nan
    return config


@pytest.fixture(scope="module")
def finished(cohort):
    """The config after all trials, and what the run said."""
    before = {path for path in cohort.parent.rglob("*")}
    outcome = run(STEP, "--config", cohort, "--score-on", "validation")
    assert outcome.code == 0, outcome.said
    return cohort, outcome, set(cohort.parent.rglob("*")) - before


def trials(*words):
    return STEP, "--score-on", "validation", *words


def metrics_of(config):
    work = load_config(config).work_dir
    return {str(path.parent.relative_to(work)): json.loads(path.read_text()) for path in files_of(work, TRIALS)}


def test_every_init_gets_every_trial_and_validation_subjects_are_scored(finished):
    config, _, _ = finished
    cells = metrics_of(config)
    names = [(m["trial"], m["contrasts"], m["init"], m["n_annotated"], m["repeat"]) for m in cells.values()]
    assert Counter(name[0] for name in names) == {"as_it_stands": 4, "faster": 4}
    for place, (trial, contrasts, init, n, repeat) in zip(cells, names, strict=True):
        assert place == f"trials/{trial}/{contrasts}/{init}/n{n:02d}/r{repeat}"
    for metrics in cells.values():
        assert {row["subject"] for row in metrics["per_subject"]} == {"sub-2"} == set(metrics["validation_subjects"])
        assert metrics["scored_on"] == "validation" and metrics["weights_kept"] == "best"
        assert metrics["updates"] == {"as_it_stands": 4, "faster": 6}[metrics["trial"]]
    assert len({metrics["config_hash"] for metrics in cells.values()}) == 4, "2 trials of 2 inits"


def test_nothing_that_is_written_knows_of_a_test_subject(finished):
    _, _, written = finished
    files = [path for path in written if path.is_file()]
    assert {"metrics.json", "model.json", "weights.npz", "history.csv", "run.log", "sub-2.nii.gz", "table.md"} <= {
        path.name for path in files
    }
    for path in files:
        assert TEST not in str(path)
        assert TEST.encode() not in path.read_bytes(), path
        if path.suffix == ".npz":
            assert TEST not in json.dumps(read_weights(path)[1])


def test_no_test_subject_is_read(cohort, tmp_path, monkeypatch):
    """What is spoilt would stop the run above; here every row that is asked for is looked at as well."""
    asked, read = set(), SliceStore._read

    def watched(store, name, rows, *rest):
        chosen = store.subject_index[np.asarray(rows, int)] if rows is not None else store.subject_index
        asked.update(np.array(store.subjects)[chosen])
        return read(store, name, rows, *rest)

    monkeypatch.setattr(SliceStore, "_read", watched)
    words = ["--config", cohort, "--trial", "faster", "--init", "random", "--repeats", 1, "--overwrite"]
    assert run(*trials(*words)).code == 0
    assert asked == {"sub-1", "sub-2"}


def test_the_spoilt_test_subject_does_stop_a_run_that_scores_it(cohort):
    outcome = run(STEP, "--config", cohort, "--init", "random", "--repeats", 1)
    assert outcome.code == 2 and TEST in outcome.said[0]


def test_the_tables_say_what_is_best_and_what_to_do_next(finished):
    config, outcome, _ = finished
    work = load_config(config).work_dir
    numbers = pandas.read_csv(work / "trials" / "table.csv")
    assert list(numbers["trial"]) == ["as_it_stands", "faster"] * 2 and list(numbers["init"][::2]) == [
        "random",
        "global",
    ]
    for row in numbers.itertuples():  # independent: straight from the files
        cells = [m for m in metrics_of(config).values() if (m["init"], m["trial"]) == (row.init, row.trial)]
        scores = {
            label: [[r["dice"] for r in m["per_subject"] if r["label"] == label][0] for m in cells]
            for label in ("kidney", "liver")
        }
        means = [np.mean([v for v in values if v is not None]) for values in scores.values() if any(v is not None for v in values)]
        assert row.dice == pytest.approx(np.mean(means))
        assert row.mean_s == pytest.approx(np.mean([m["duration_s"] for m in cells])) and row.runs == 2
    text = (work / "trials" / "table.md").read_text()
    block = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    best = {init: part.loc[part["dice"].idxmax(), "trial"] for init, part in numbers.groupby("init")}
    assert block == {"chosen": best} and text.count("| **") == 4
    assert "Scored on 1 annotated validation subject, not on test subjects" in text and "best of validation" in text
    assert outcome.logged[-1].startswith(f"next: put 'chosen' of {work}/trials/table.md into finetuning: of {config}")
    sections = FINETUNING | block
    changed = write_config(config.parent / "chosen", finetuning=sections) if (config.parent / "chosen").mkdir() is None else 0
    assert load_config(changed).finetuning.settings_of("random").training.epochs == {"as_it_stands": 2, "faster": 3}[
        best["random"]
    ]


def test_finished_trials_are_skipped_and_the_table_is_written_anew(finished):
    config, _, _ = finished
    work = load_config(config).work_dir
    before = {path: path.stat().st_mtime_ns for path in work.rglob("metrics.json")}
    (work / "trials" / "table.md").unlink()
    outcome = run(*trials("--config", config))
    assert outcome.code == 0 and (work / "trials" / "table.md").exists()
    assert {path: path.stat().st_mtime_ns for path in work.rglob("metrics.json")} == before


def test_step_5_does_not_see_trials(finished):
    config, _, _ = finished
    outcome = run("reproduce_tables", "--config", config)
    assert outcome.code == 2 and "no finetuning/*/*/n*/r*/metrics.json" in outcome.said[0]


def test_no_winner_while_an_init_lacks_a_trial(cohort, tmp_path):
    work = tmp_path / "work"
    source = load_config(cohort).work_dir
    (work / "pretraining").mkdir(parents=True)
    (work / "h5").symlink_to(source / "h5")
    (work / "pretraining" / "global").symlink_to(source / "pretraining" / "global")
    words = ["--config", cohort, "--work-dir", work, "--repeats", 1]
    outcome = run(*trials(*words, "--init", "random"))
    assert outcome.code == 0 and "no winner is named: 2 gaps" in outcome.logged[-1]
    text = (work / "trials" / "table.md").read_text()
    assert "chosen" not in text.split("No winner is named")[1] and "**" not in text
    assert "- global, trial faster: 1 of 1 run missing (t1/n01/r0)" in text


def test_a_stage_pretrained_on_a_test_subject_is_refused(cohort, tmp_path):
    work, source = tmp_path / "work", load_config(cohort).work_dir
    (work / "pretraining").mkdir(parents=True)
    (work / "h5").symlink_to(source / "h5")
    network = Grid  # only to name what refuses
    import keras

    inputs = keras.Input((16, 16, 1))
    leaking = keras.Model(inputs, keras.layers.Conv2D(2, 3, name="encoder_1_conv_1")(inputs))
    _, metadata = read_weights(source / "pretraining" / "global" / "weights.npz")
    save_weights(leaking, work / "pretraining" / "global" / "weights.npz", **metadata | {"seen": [TEST]})
    outcome = run(*trials("--config", cohort, "--work-dir", work, "--init", "global"))
    assert outcome.code == 2 and outcome.said == [f"{TEST}: test subject, but 'global' was pretrained on it"], network


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trial", "faster"], "--trial: trials are scored on validation subjects; give --score-on validation as well"),
        (
            ["--score-on", "validation", "--trial", "slower"],
            "--trial slower: not one of finetuning.trials (as_it_stands, faster)",
        ),
        (["--score-on", "validation", "--set", "finetuning.trials={}"], "--score-on validation needs finetuning.trials"),
    ],
)
def test_the_command_line_is_refused(cohort, words, message):
    outcome = run(STEP, "--config", cohort, *words)
    assert outcome.code == 2 and message in outcome.said[0]


def test_one_trainer_at_a_time_and_each_built_once(cohort, tmp_path, monkeypatch):
    work, source = tmp_path / "work", load_config(cohort).work_dir
    work.mkdir()
    (work / "h5").symlink_to(source / "h5")
    import finetune_segmentation

    built, alive = [], []
    build = finetune_segmentation.build_trainer
    monkeypatch.setattr(
        finetune_segmentation, "build_trainer", lambda *a, **k: built.append(a[2].training.epochs) or build(*a, **k)
    )
    cell = Grid.run_cell
    monkeypatch.setattr(Grid, "run_cell", lambda grid, c: (cell(grid, c), alive.append(len(grid.trainers)))[0])
    logging.getLogger("mrccl").setLevel("INFO")
    outcome = run(*trials("--config", cohort, "--work-dir", work, "--init", "random"))
    assert outcome.code == 0 and built == [2, 3] and alive == [1] * 4
