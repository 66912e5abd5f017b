"""Trials of settings, from packed slices to the table, on a cohort whose test subjects cannot be read."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pandas
import pytest
import yaml

import finetune_segmentation
from data.layouts.subjects import find_subjects
from data.splits import make_splits
from data.store.store import SliceStore
from evaluation.scores.scores import files_of
from evaluation.scores.trials import TRIALS
from models.weights import read_weights, save_weights
from tests.bad_input.harness import run
from tests.cohort import CONFIG, write_cohort, write_config
from tests.readers import read_label
from training.cells import Cell
from training.grid import Grid
from utils.checks import InputError
from utils.config.load import load_config

STEP = "finetune_segmentation"
TEST = "sub-3"
TRAINING = {"epochs": 2, "steps_per_epoch": 2, "batch_size": 2, "learning_rate": 0.001}
FINETUNING = CONFIG["finetuning"] | {
    "repeats": 1,
    "training": TRAINING,
    "trials": {"as_it_stands": {}, "faster": {"training.learning_rate": 0.02, "training.epochs": 3}},
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Return the config of a work dir after three steps, without subject names, and damaged test subjects."""
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
        file["label"][rows] = 99  # refused by every reader
        file["img"][rows] = np.nan
    return config


@pytest.fixture(scope="module")
def watched():
    """Record a run: `asked`, subjects whose slices it read; `built`, epochs of its trainers; `held` by each cell."""
    found = SimpleNamespace(asked=set(), built=[], held=[])
    read, build, run_cell = SliceStore._read, finetune_segmentation.build_trainer, Grid.run_cell

    def watched_read(store, name, rows, *rest):
        chosen = store.subject_index if rows is None else store.subject_index[np.asarray(rows, int)]
        found.asked.update(np.array(store.subjects)[chosen])
        return read(store, name, rows, *rest)

    def watched_build(config, channels, settings):
        found.built.append(settings.training.epochs)
        return build(config, channels, settings)

    def watched_cell(grid, cell):
        run_cell(grid, cell)
        found.held.append(len(grid.trainers))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SliceStore, "_read", watched_read)
        patch.setattr(finetune_segmentation, "build_trainer", watched_build)
        patch.setattr(Grid, "run_cell", watched_cell)
        yield found


@pytest.fixture(scope="module")
def finished(cohort, watched):
    """Return the config after all trials, the messages of the run, and the files it wrote."""
    before = set(cohort.parent.rglob("*"))
    for trial in FINETUNING["trials"]:  # a run of the harness has a time limit
        outcome = run(*trials("--config", cohort, "--trial", trial))
        assert outcome.code == 0, outcome.said
    return cohort, outcome, set(cohort.parent.rglob("*")) - before


def trials(*words):
    return STEP, "--score-on", "validation", *words


def work_beside(config, folder):
    """Make a work dir with the slices of another one; returns both."""
    source = load_config(config).work_dir
    (folder / "work" / "pretraining").mkdir(parents=True)
    (folder / "work" / "h5").symlink_to(source / "h5")
    return folder / "work", source


def metrics_of(config):
    work = load_config(config).work_dir
    return {str(path.parent.relative_to(work)): json.loads(path.read_text()) for path in files_of(work, TRIALS)}


def test_every_init_gets_every_trial_and_validation_subjects_are_scored(finished):
    config, _, _ = finished
    cells = metrics_of(config)
    names = [(m["trial"], m["contrasts"], m["init"], m["n_annotated"], m["repeat"]) for m in cells.values()]
    assert Counter(name[0] for name in names) == {"as_it_stands": 2, "faster": 2}
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
    assert "checkpoint.npz" not in {path.name for path in files}
    assert {"metrics.json", "model.json", "weights.npz", "history.csv", "run.log", "sub-2.nii.gz", "table.md"} <= {
        path.name for path in files
    }
    for path in files:
        assert TEST not in str(path)
        assert TEST.encode() not in path.read_bytes(), path
        if path.suffix == ".npz":
            assert TEST not in json.dumps(read_weights(path)[1])


def test_no_slice_of_a_test_subject_is_read(finished, watched):
    assert watched.asked == {"sub-1", "sub-2"}


def test_each_trainer_is_built_once_and_is_the_only_one(finished, watched):
    assert watched.built == [2, 3] and watched.held == [1] * 4


def test_reading_the_damaged_test_subject_fails(cohort):
    config = load_config(cohort)
    store, files = SliceStore(config.work_dir / "h5" / "annotated.h5"), find_subjects(config.data.wanted())
    with pytest.raises(InputError, match="holds class 99"):
        store.labels(store.rows_of([TEST]))
    with pytest.raises(InputError, match=TEST):
        read_label(files[TEST], config.data.labels, (), None, None)


def test_a_model_is_described_by_the_settings_that_it_was_trained_with(cohort):
    trials = json.dumps({"plain": {}, "deeper": {"head_block": True}})
    config = load_config(cohort, [f"finetuning.trials={trials}", "finetuning.chosen={global: deeper}"])
    files = find_subjects(config.data.wanted())
    (split,) = make_splits(config.plain()["data"]["splits"], config.data.root, files, config.seed)
    trained = finetune_segmentation.Trials(config, split, files)
    chosen = finetune_segmentation.Segmentations(config, split, files)
    for work, cell, expected in (
        (trained, Cell("random", 1, 0, "t1", "plain"), False),
        (trained, Cell("random", 1, 0, "t1", "deeper"), True),
        (chosen, Cell("random", 1, 0, "t1"), False),
        (chosen, Cell("global", 1, 0, "t1"), True),
    ):
        described = work.describe_model(cell, split.train)
        assert (described.head_block, described.contrasts) == (expected, ["t1"])
        layers = {layer.name for layer in work.build_trainer(cell).network.layers}
        assert any(name.startswith("segmentation_") and name != "segmentation_conv" for name in layers) == expected


def test_the_tables_say_what_is_best_and_what_to_do_next(finished):
    config, outcome, _ = finished
    work = load_config(config).work_dir
    numbers = pandas.read_csv(work / "trials" / "table.csv")
    assert list(numbers["trial"]) == ["as_it_stands", "faster"] * 2 and list(numbers["init"][::2]) == [
        "random",
        "global",
    ]
    for row in numbers.itertuples():  # straight from the files; one subject
        cells = [m for m in metrics_of(config).values() if (m["init"], m["trial"]) == (row.init, row.trial)]
        scores = {}
        for score in (score for metrics in cells for score in metrics["per_subject"] if score["dice"] is not None):
            scores.setdefault(score["label"], []).append(score["dice"])
        assert row.dice == pytest.approx(np.mean([np.mean(values) for values in scores.values()]))
        assert row.mean_s == pytest.approx(np.mean([m["duration_s"] for m in cells])) and row.runs == 1
    text = (work / "trials" / "table.md").read_text()
    block = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    best = {init: part.loc[part["dice"].idxmax(), "trial"] for init, part in numbers.groupby("init")}
    assert block == {"chosen": best} and text.count("| **") == 4
    assert "Scored on 1 annotated validation subject, not on test subjects" in text and "best of validation" in text
    assert outcome.logged[-1].startswith(f"next: put 'chosen' of {work}/trials/table.md into finetuning: of {config}")
    chosen = load_config(config, [f"finetuning.chosen={json.dumps(block['chosen'])}"]).finetuning
    for init in ("random", "global"):
        assert chosen.settings_of(init).training.epochs == {"as_it_stands": 2, "faster": 3}[best[init]]


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


def test_no_winner_while_an_init_lacks_a_trial(finished, tmp_path):
    work, source = work_beside(finished[0], tmp_path)
    shutil.copytree(source / "trials", work / "trials")
    for folder in (work / "trials").glob("*/t1/global"):
        shutil.rmtree(folder)
    outcome = run(*trials("--config", finished[0], "--work-dir", work, "--init", "random"))
    assert outcome.code == 0 and "no winner is named: 2 gaps" in outcome.logged[-1]
    text = (work / "trials" / "table.md").read_text()
    assert "**" not in text and "yaml" not in text
    assert "- global, trial faster: 1 of 1 run missing (t1/n01/r0)" in text


def test_trials_of_other_settings_are_left_out_and_counted(finished, tmp_path):
    work, source = work_beside(finished[0], tmp_path)
    shutil.copytree(source / "trials", work / "trials")
    changed = "finetuning.trials={as_it_stands: {}, faster: {training.learning_rate: 0.03}}"
    words = ["--config", finished[0], "--work-dir", work, "--set", changed, "--init", "random"]
    outcome = run(*trials(*words, "--trial", "as_it_stands"))
    assert outcome.code == 0, outcome.said
    text = (work / "trials" / "table.md").read_text()
    assert "| faster |" not in text and "Left out, because another config or seed made them: 2 cells." in text
    outcome = run(*trials(*words, "--trial", "faster"))
    assert outcome.code == 2 and "made with another config; give --overwrite" in outcome.said[0]


def test_a_stage_pretrained_on_a_test_subject_is_refused(cohort, tmp_path):
    work, source = work_beside(cohort, tmp_path)
    inputs = keras.Input((16, 16, 1))
    leaking = keras.Model(inputs, keras.layers.Conv2D(2, 3, name="encoder_1_conv_1")(inputs))
    _, metadata = read_weights(source / "pretraining" / "global" / "weights.npz")
    save_weights(leaking, work / "pretraining" / "global" / "weights.npz", **metadata | {"seen": [TEST]})
    outcome = run(*trials("--config", cohort, "--work-dir", work, "--init", "global"))
    assert outcome.code == 2 and outcome.said == [f"{TEST}: test subject, but 'global' was pretrained on it"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--trial", "faster"],
            "--trial: trials are scored on validation subjects; give --score-on validation as well",
        ),
        (
            ["--score-on", "validation", "--trial", "slower"],
            "--trial slower: not one of finetuning.trials (as_it_stands, faster)",
        ),
        (
            ["--score-on", "validation", "--set", "finetuning.trials={}"],
            "--score-on validation needs finetuning.trials",
        ),
        (
            ["--score-on", "validation", "--devices", 2, "--set", "finetuning.trials={odd: {training.batch_size: 3}}"],
            "finetuning.trials.odd.training.batch_size: 3 slices cannot be split evenly by --devices 2",
        ),
    ],
)
def test_the_command_line_is_refused(cohort, words, message):
    outcome = run(STEP, "--config", cohort, *words)
    assert outcome.code == 2 and message in outcome.said[0]
