"""The grid of finetuning: which cells are finished, from which weights they start, that nothing leaks; and one cell."""

import gc
import json
import logging
import time

from data.identity import of_scans, owners_of_images, refuse_same_scans
from data.splits import annotated_subsets, hash_of_split
from training.devices import data_parallel
from training.tracking import tracked
from utils.checks import InputError
from utils.config import chosen_sinks
from utils.runs import alone_in, child_seed, drop_checkpoint, open_run, progress, read_json, write_json
from utils.schema import fingerprint

log = logging.getLogger("mrccl")

LATER = ("split_hash", "scans")  # cells from before these were written have none: they are not compared


class Grid:
    """The cells of one split; a cell is a tuple that ends in `(init, n, repeat)`.

    Args:
        config: The `Config`.
        split: `data.splits.Split`.
        work: What a cell is. Its `subjects` are three lists, for training, validation and testing, and `scored` those
            that cells predict; `made_of` is more of what a cell is made from, written to metrics.json and compared
            before it is reused; `store` and `files` are the packed slices and the files of its subjects; `sizes_key` is
            the key of the config that lists N. Its methods, the first five called with the items of a cell:
            `cell_folder`; `names`, what metrics.json calls it; `inputs`, the input channels of its network;
            `hash_of_cell`, of what shapes its result; `seed_of`, of its order and augmentation, the same for every
            init. `trainer_key(cell)`, equal for cells that one trainer serves; `build_trainer(cell)`; `train(trainer,
            cell, subjects, **run)`, which leaves the weights to keep in `trainer.network`; `check_references()`, which
            refuses references that changed since they were packed; `score(network, cell, folder)`, which predicts the
            subjects in `scored` and returns the rows of metrics.json; `judge(network, cell)`, which returns what
            metrics.json says of the validation subjects; `describe_model(cell, subjects)`, for predict.py.
        trainers: Dictionary that all grids share: the key of the trainer in use to that trainer, so that a step is
            compiled once and one at a time takes memory.

    Attributes:
        folder: Work folder of the split.
        pretrained: Init to `(arrays, contrasts)` of its weights, once the cells are checked.
        subsets: `(n, repeat)` to the subjects to train on, likewise.
    """

    def __init__(self, config, split, work, trainers):
        self.config, self.split, self.work, self.trainers = config, split, work, trainers
        self.train_subjects, self.val_subjects, self.test_subjects = work.subjects
        self.scored = work.scored
        self.folder, self.split_hash = split.folder(config.work_dir), hash_of_split(split.to_dict())
        self.pretrained, self.subsets, self.todo, self.redone, self.sinks = {}, {}, [], [], {}

    def check(self, cells, overwrite):
        """Find every mistake before the first cell: too few subjects, missing weights, leaks, other configs."""
        sizes, repeats = {cell[-2] for cell in cells}, 1 + max(cell[-1] for cell in cells)
        drawn = (sorted(sizes), repeats, self.config.seed, self.work.sizes_key)
        self.subsets = annotated_subsets(self.train_subjects, *drawn)
        refuse_same_scans(self.split.to_dict(), self.work.store.hashes, self.work.files)
        mistakes = [line for init in sorted({cell[-3] for cell in cells} - {"random"}) for line in self._read(init)]
        if mistakes:
            raise InputError(mistakes)
        self.todo = [cell for cell in cells if overwrite or not self.is_finished(cell)]
        self.redone = self._with_metrics(self.todo)
        for folder in self.redone:
            with alone_in(folder):  # refused here, nothing is removed
                pass
        if self.todo:
            self.work.check_references()
        if len(self.todo) < len(cells):
            log.info("%s: %d of %d cells were finished before", self.folder, len(cells) - len(self.todo), len(cells))

    def clear(self, cells):
        """Remove checkpoints beside scores, and the scores of cells that are about to be redone.

        These must not count as finished if this run is interrupted.

        Raises:
            InputError: Another run is at work in a cell that is to be redone.
        """
        for folder in self._with_metrics(cells):  # a kill may have left one: a run anew must not go on from that
            drop_checkpoint(folder)
        for folder in self.redone:
            with alone_in(folder):
                (folder / "metrics.json").unlink(missing_ok=True)

    def _with_metrics(self, cells):
        folders = [self.work.cell_folder(*cell) for cell in cells]
        return [folder for folder in folders if (folder / "metrics.json").exists()]

    def _read(self, init):
        """Read pretrained weights; yields what is wrong with them."""
        from models.weights import read_weights  # deferred: it starts the backend

        weights = self.folder / "pretraining" / init / "weights.npz"
        if not weights.exists():
            yield f"{weights}: no such file; run constrained_contrastive_learning.py first"
            return
        arrays, metadata = read_weights(weights)
        self.pretrained[init] = (arrays, metadata.get("contrasts"))
        seen = {*metadata.get("seen", ()), *(s for part in metadata.get("subjects", {}).values() for s in part)}
        for subject in sorted(seen & set(self.test_subjects)):
            yield f"{subject}: test subject, but '{init}' was pretrained on it"
        scans = metadata.get("seen_scans", {})
        for subject in sorted(set(self.test_subjects) - seen):
            owners = {scans[digest] for digest in owners_of_images(self._hashes([subject])) if digest in scans}
            yield from (
                f"{subject}: test subject, but '{init}' was pretrained on the same scan under the name {owner}; take "
                "it out of the test set, or pretrain without it"
                for owner in sorted(owners)
            )
        if metadata.get("split_hash", self.split_hash) != self.split_hash:
            yield f"{weights}: made with another split; run step 3 again with --overwrite"
        if metadata.get("config_hash") != self.config.hash_of_stage(init):
            yield f"{weights}: made with another config; run step 3 again with --overwrite"

    def is_finished(self, cell):
        """True when the cell's metrics are there; InputError when they come from another config, seed or split."""
        metrics = self.work.cell_folder(*cell) / "metrics.json"
        if not metrics.exists():
            return False
        found = read_json(metrics)
        found["tested"] = sorted({row["subject"] for row in found["per_subject"]})
        expected = self.origin(cell) | {"tested": sorted(self.scored)}
        differing = [key for key, value in expected.items() if found.get(key, value if key in LATER else None) != value]
        if differing:
            what = {"scans": "from other scans"}.get(differing[0], f"with another {differing[0].replace('_', ' ')}")
            raise InputError(f"{metrics.parent}: made {what}; give --overwrite, or another --work-dir")
        return True

    def origin(self, cell):
        """What a cell was made from; written to metrics.json and compared before a cell is reused."""
        *_, n, repeat = cell
        scans = self._hashes([*self.subsets[n, repeat], *self.val_subjects, *self.scored])
        return {
            "config_hash": self.work.hash_of_cell(*cell),
            "seed": self.config.seed,
            "train_subjects": list(self.subsets[n, repeat]),
            "validation_subjects": list(self.val_subjects),
            "split_hash": self.split_hash,
            **({"scans": fingerprint(scans)} if scans else {}),
            **self.work.made_of,
        }

    def _hashes(self, subjects):
        known = self.work.store.hashes
        return of_scans({subject: known[subject] for subject in subjects if subject in known})

    def run(self, cells, keep_going):
        """Run some of the unfinished cells; returns one line for each that failed."""
        failed = []
        for cell in progress(cells, f"Finetuning {self.split.name}".strip()):
            try:
                self.run_cell(cell)
            except InputError as error:
                if not keep_going:
                    raise
                failed.append(f"{self.work.cell_folder(*cell)}: {error}")
        return failed

    def run_cell(self, cell):
        """Train on the subjects of one cell, predict every subject that is scored, write what came out."""
        from models.weights import load_weights, save_weights

        if self.is_finished(cell):  # by another run, since this one began
            return
        folder, inputs, origin = self.work.cell_folder(*cell), self.work.inputs(*cell), self.origin(cell)
        name, started = str(folder.relative_to(self.config.work_dir)), time.monotonic()
        send = tracked(folder, self.config.plain(), origin["config_hash"], self.sinks.get("with_mlflow"))
        with open_run(folder, self.config.plain(), self.config.seed), send:
            trainer = self._trainer(cell)
            self._start(trainer, inputs, cell)
            run = {"folder": folder, "tag": json.dumps(origin), "name": name}
            run |= self.sinks
            self.work.train(trainer, cell, origin["train_subjects"], seed=self.work.seed_of(*cell), **run)
            # Half precision on disk; what is scored is what is stored, so predict.py gives what was scored.
            made = {key: origin[key] for key in ("config_hash", "split_hash")}
            kept = made | {"contrasts": inputs}
            save_weights(trainer.network, folder / "weights.npz", half=True, **kept)
            load_weights(trainer.network, folder / "weights.npz")
            rows = self.work.score(trainer.network, cell, folder / "predictions")
            rows = [{key: _json_number(value) for key, value in row.items()} for row in rows]
            about = (
                {"split": self.split.name} | self.work.names(*cell) | {"annotated_available": len(self.train_subjects)}
            )
            about |= {"n_selecting": len(self.val_subjects) if trainer.schedule.needs_validation else 0}
            about |= self.work.judge(trainer.network, cell)
            times = {"duration_s": round(time.monotonic() - started, 1), "compile_s": round(trainer.compile_s, 2)}
            times["updates"] = trainer.updates
            times["augmentation_px"] = trainer.augmentation  # what is in mm in the config is in pixels here
            model = self.work.describe_model(cell, origin["train_subjects"]) | made
            write_json(folder / "model.json", model)
            # Written last: a folder with metrics.json is a finished cell.
            write_json(folder / "metrics.json", origin | about | times | {"per_subject": rows})
            drop_checkpoint(folder)
            share = times["compile_s"] / max(times["duration_s"], 0.1)
            log.info("%s: %.1f s, %.0f %% of them compiling", name, times["duration_s"], 100 * min(share, 1))

    def _trainer(self, cell):
        """Return the trainer of a cell; another one is dropped first, because a compiled step takes much memory."""
        key = self.work.trainer_key(cell)
        if key not in self.trainers:
            self.trainers.clear()
            gc.collect()  # networks and their steps refer to each other
            self.trainers[key] = self.work.build_trainer(cell)
        return self.trainers[key]

    def _start(self, trainer, inputs, cell):
        """Put the initial weights of a cell into the trainer's network and say which."""
        *_, init, _, repeat = cell
        arrays, source = self.pretrained.get(init, (None, None))
        # Cells that differ only by their initialisation share the random weights of what is not pretrained.
        report = trainer.start_from(
            child_seed(self.config.seed, "weights", repeat), arrays, source_contrasts=source, target_contrasts=inputs
        )
        log.info("%s: %s", self.work.cell_folder(*cell), report.summary() if report else "random initialisation")


def run_grids(grids, cells, options, finish=None):
    """Check all grids, then run them on the devices asked for; returns the exit code of the script.

    Args:
        grids: One `Grid` for each split.
        cells: The cells that each of them should have.
        options: Command line with the options of `utils.config.add_grid_options`.
        finish: Function called at the end, which says what to type next; None: step 5.
    """
    sinks = chosen_sinks(options)
    for grid in grids:
        grid.check(cells, options.overwrite)
        grid.sinks = sinks
    for grid in grids:  # once all of them are sound
        grid.clear(cells)
    with data_parallel(options.devices):
        failed = [name for grid, part in by_trainer(grids) for name in grid.run(part, options.keep_going)]
    for line in failed:
        log.error("failed: %s", line)
    log.info("next: %s", finish() if finish else f"python reproduce_tables.py {options.again}")
    return 1 if failed else 0


def by_trainer(grids):
    """Put the unfinished cells of all grids in the order in which each trainer is built once and then dropped.

    Returns:
        List of `(grid, cells)`; the trainers, and the cells of one, stand in the order of the grids.
    """
    parts = {}
    for grid in grids:
        for cell in grid.todo:
            parts.setdefault(grid.work.trainer_key(cell), {}).setdefault(grid, []).append(cell)
    return [part for grids_of_trainer in parts.values() for part in grids_of_trainer.items()]


def _json_number(value):
    """JSON knows no NaN and no infinity: a score that is not defined, or boundless, is null."""
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
