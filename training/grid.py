"""The finetuning grid: which cells are finished, which weights they start from, checks for leaks; running a cell."""

import argparse
import gc
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.identity import of_scans, owners_of_images, refuse_same_scans
from data.splits import annotated_subsets, hash_of_split
from models.weights import Pretrained, load_weights, save_weights
from training.cells import Cell, CellTask
from training.devices import data_parallel
from training.loop import RunOptions
from training.tracking import tracked
from utils.checks import InputError, accept
from utils.command_line import chosen_sinks
from utils.config.schema import fingerprint
from utils.provenance import Provenance
from utils.runs import alone_in, child_seed, drop_checkpoint, json_number, open_run, progress, read_json, write_json
from utils.work_dir import METRICS, MODEL, PREDICTIONS, WEIGHTS

log = logging.getLogger("mrccl")


class Grid:
    """The cells of one split.

    Args:
        task: What its cells train on, predict and write.
        trainers: Dictionary shared by all grids: the key of the trainer in use -> that trainer, so that each step is
            compiled once and only one at a time takes memory.

    Attributes:
        pretrained: Init -> its weights, once the cells are checked.
        subsets: `(n, repeat)` -> the subjects to train on, likewise.
    """

    def __init__(self, task: CellTask, trainers: dict):
        self.task, self.config, self.work, self.trainers = task, task.config, task.work, trainers
        self.split_hash = hash_of_split(task.split.to_dict())
        self.pretrained: dict[str, Pretrained] = {}
        self.subsets: dict[tuple[int, int], tuple[str, ...]] = {}
        self.todo: list[Cell] = []
        self.redone: list[Path] = []
        self.sinks: dict[str, Any] = {}

    def check(self, cells: list[Cell], overwrite: bool, keep_going: bool = False) -> list[str]:
        """Find every mistake before the first cell: too few subjects, missing weights, leaks, other configs.

        Returns:
            Under `keep_going`, a line for each subject that cannot be used and is left out.
        """
        failures: list[str] = []
        accept(list(self.task.absent()), keep_going, failures)
        sizes, repeats = sorted({cell.n for cell in cells}), 1 + max(cell.repeat for cell in cells)
        drawn = (sizes, repeats, self.config.seed, self.task.sizes_key)
        self.subsets = annotated_subsets(self.task.train_subjects, *drawn)
        refuse_same_scans(self.task.split.to_dict(), self.task.store.hashes, self.task.files)
        mistakes = [line for init in sorted({cell.init for cell in cells} - {"random"}) for line in self._read(init)]
        if mistakes:
            raise InputError(mistakes)
        self.todo = [cell for cell in cells if overwrite or not self.is_finished(cell)]
        self.redone = self._with_metrics(self.todo)
        for folder in self.redone:
            with alone_in(folder):  # if another run is refused here, nothing has been removed yet
                pass
        if self.todo:
            self._check_references(keep_going, failures)
        if before := len(cells) - len(self.todo):
            log.info("%s: %d of %d cells were finished before", self.work.folder, before, len(cells))
        return failures

    def _check_references(self, keep_going, failures):
        """Refuse references that differ from what step 2 packed; under `keep_going`, leave those subjects unscored."""
        problems = {}
        for subject in progress(self.task.scored, "Checking references"):
            try:
                self.task.reference(subject)
            except InputError as error:
                problems[subject] = error.lines
        accept([line for lines in problems.values() for line in lines], keep_going, failures)
        self.task.scored = [subject for subject in self.task.scored if subject not in problems]
        if not self.task.scored:
            raise InputError(failures)

    def clear(self, cells: list[Cell]) -> None:
        """Remove checkpoints beside scores, and the scores of cells that are about to be redone.

        Such cells must not count as finished if this run is interrupted.

        Raises:
            InputError: Another run is working on a cell that is to be redone.
        """
        for folder in self._with_metrics(cells):  # a kill may have left one, which a new run must not resume from
            drop_checkpoint(folder)
        for folder in self.redone:
            with alone_in(folder):
                (folder / METRICS).unlink(missing_ok=True)

    def _with_metrics(self, cells):
        folders = map(self.task.folder, cells)
        return [folder for folder in folders if (folder / METRICS).exists()]

    def _read(self, init):
        """Read pretrained weights; yield what is wrong with them."""
        path = self.work.stage_weights(init)
        if not path.exists():
            yield f"{path}: no such file; run constrained_contrastive_learning.py first"
            return
        self.pretrained[init] = found = Pretrained.read(path)
        tested = {subject: owners_of_images(self._hashes([subject])) for subject in self.task.test_subjects}
        yield from found.mistakes(init, self.config.hash_of_stage(init), self.split_hash, tested)

    def is_finished(self, cell: Cell) -> bool:
        """True if the cell has metrics; InputError if they come from another config, seed or split."""
        folder = self.task.folder(cell)
        if not (folder / METRICS).exists():
            return False
        found = read_json(folder / METRICS)
        self.made_from(cell).refuse_other(found, folder)
        if {row["subject"] for row in found["per_subject"]} != set(self.task.scored):
            raise InputError(f"{folder}: made with other scored subjects; give --overwrite, or another --work-dir")
        return True

    def made_from(self, cell: Cell) -> Provenance:
        """What a cell is made from; written to metrics.json and compared before the cell is reused."""
        subjects = self.subsets[cell.n, cell.repeat]
        scans = self._hashes([*subjects, *self.task.val_subjects, *self.task.scored])
        others = {"train_subjects": list(subjects), "validation_subjects": list(self.task.val_subjects)}
        return Provenance(
            self.task.hash_of(cell),
            self.config.seed,
            self.split_hash,
            fingerprint(scans) if scans else None,
            others | dict(self.task.made_of),
        )

    def _hashes(self, subjects):
        known = self.task.store.hashes
        return of_scans({subject: known[subject] for subject in subjects if subject in known})

    def run(self, cells: list[Cell], keep_going: bool) -> list[str]:
        """Run some of the unfinished cells; return one line for each that failed."""
        failed = []
        for cell in progress(cells, f"Finetuning {self.work.split}".strip()):
            try:
                self.run_cell(cell)
            except InputError as error:
                if not keep_going:
                    raise
                failed.append(f"{self.task.folder(cell)}: {error}")
        return failed

    def run_cell(self, cell: Cell) -> None:
        """Train on the subjects of one cell, predict every scored subject, and write the results."""
        if self.is_finished(cell):  # by another run, after this one began
            return
        task, made_from, folder, started = self.task, self.made_from(cell), self.task.folder(cell), time.monotonic()
        subjects, name = list(self.subsets[cell.n, cell.repeat]), self.work.name_of(folder)
        send = tracked(folder, self.config.plain(), made_from.config_hash, self.sinks.get("with_mlflow", False))
        with open_run(folder, self.config.plain(), self.config.seed), send:
            trainer = self._trainer(cell)
            self._start(trainer, cell)
            run = RunOptions(folder, json.dumps(made_from.as_dict()), name, task.seed_of(cell), **self.sinks)
            task.train(trainer, cell, subjects, run)
            made = {"config_hash": made_from.config_hash, "split_hash": self.split_hash}
            # Stored in half precision and loaded again, so that predict.py reproduces what was scored.
            save_weights(trainer.network, folder / WEIGHTS, half=True, contrasts=task.inputs(cell), **made)
            load_weights(trainer.network, folder / WEIGHTS)
            rows = [
                {key: json_number(value) for key, value in row.items()}
                for row in task.score(trainer.network, cell, folder / PREDICTIONS)
            ]
            about = self._about(trainer, cell) | {"duration_s": round(time.monotonic() - started, 1)}
            write_json(folder / MODEL, task.describe_model(cell, subjects).as_json())
            # Written last: a folder with metrics.json is a finished cell.
            write_json(folder / METRICS, made_from.as_dict() | about | {"per_subject": rows})
            drop_checkpoint(folder)
            share = 100 * min(about["compile_s"] / max(about["duration_s"], 0.1), 1)
            log.info("%s: %.1f s, %.0f %% of them compiling", name, about["duration_s"], share)

    def _about(self, trainer, cell):
        """What metrics.json records about a cell besides its scores and what it was made from."""
        selecting = len(self.task.val_subjects) if trainer.schedule.needs_validation else 0
        return {
            "split": self.work.split,
            **self.task.names(cell),
            "annotated_available": len(self.task.train_subjects),
            "n_selecting": selecting,
            **self.task.judge(trainer.network, cell),
            "compile_s": round(trainer.compile_s, 2),
            "updates": trainer.updates,
            "augmentation_px": trainer.augmentation.as_dict(),  # lengths in mm in the config are in pixels here
        }

    def _trainer(self, cell):
        """Return the trainer of a cell; any other is dropped first, because a compiled step takes a lot of memory."""
        key = self.task.trainer_key(cell)
        if key not in self.trainers:
            self.trainers.clear()
            gc.collect()  # networks and their steps refer to each other
            self.trainers[key] = self.task.build_trainer(cell)
        return self.trainers[key]

    def _start(self, trainer, cell):
        """Load the initial weights of a cell into the trainer's network and log which."""
        # Cells that differ only in their initialisation share the random weights of all layers not pretrained.
        seed, pretrained = child_seed(self.config.seed, "weights", cell.repeat), self.pretrained.get(cell.init)
        report = trainer.start_from(seed, pretrained, self.task.inputs(cell))
        log.info("%s: %s", self.task.folder(cell), report.summary() if report else "random initialisation")


def run_grids(
    grids: list[Grid],
    cells: list[Cell],
    options: argparse.Namespace,
    finish: Callable[[], str] | None = None,
    failures: list[str] | None = None,
) -> int:
    """Check all grids, then run them on the requested devices; return the exit code of the script.

    Args:
        grids: One `Grid` for each split.
        cells: The cells that each grid should have.
        options: Command line with the options of `utils.command_line.add_grid_options`.
        finish: Function called at the end, which returns the next command to type; None: step 5.
        failures: Lines on subjects already left out under --keep-going.
    """
    sinks = chosen_sinks(options)
    failed = [] if failures is None else failures
    for grid in grids:
        failed += grid.check(cells, options.overwrite, options.keep_going)
        grid.sinks = sinks
    for grid in grids:  # only after all of them have passed the check
        grid.clear(cells)
    with data_parallel(options.devices):
        failed += [name for grid, part in by_trainer(grids) for name in grid.run(part, options.keep_going)]
    for line in dict.fromkeys(failed):
        log.error("failed: %s", line)
    log.info("next: %s", finish() if finish else f"python reproduce_tables.py {options.again}")
    return 1 if failed else 0


def by_trainer(grids: list[Grid]) -> list[tuple[Grid, list[Cell]]]:
    """Order the unfinished cells of all grids so that each trainer is built once and then dropped.

    Returns:
        List of `(grid, cells)`; trainers, and the cells of each, are in the order of the grids.
    """
    parts: dict[Any, dict[Grid, list[Cell]]] = {}
    for grid in grids:
        for cell in grid.todo:
            parts.setdefault(grid.task.trainer_key(cell), {}).setdefault(grid, []).append(cell)
    return [part for grids_of_trainer in parts.values() for part in grids_of_trainer.items()]
