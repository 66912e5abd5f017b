"""Step 4 of 5: finetune segmentation networks on few annotated subjects and score them on all test subjects.

    python finetune_segmentation.py --config configs/lgg_tcga.yaml
    python finetune_segmentation.py --config configs/lgg_tcga.yaml --init random --subjects-n 2 --repeats 1

Reads   h5/annotated.h5 (step 2), pretraining/<init>/weights.npz (step 3) and the label maps of the test subjects.
Writes  finetuning/<contrasts>/<init>/n<NN>/r<K>/ with metrics.json, model.json and weights.npz (together a model folder
        for predict.py), history.csv, predictions/<subject>.nii.gz and a run record, for each cell of the grid.
Takes   about a minute a cell on a CPU with small images. Finished cells are skipped; an interrupted one resumes.
Next    python reproduce_tables.py --config FILE
"""

import functools
import itertools
import json
import logging
import time

from utils.checks import InputError
from utils.config import from_command_line, positive
from utils.runs import child_seed, exit_code_of, open_run, progress, read_json, write_json
from utils.schema import channel_names

log = logging.getLogger("mrccl")


def add_options(parser):
    parser.add_argument("--contrasts", nargs="+", metavar="NAME", help="input sets (default: all in the config)")
    parser.add_argument("--init", nargs="+", metavar="NAME", help="initialisations (default: all in the config)")
    parser.add_argument("--subjects-n", nargs="+", type=positive, metavar="N", help="numbers of annotated subjects")
    parser.add_argument("--repeats", type=positive, metavar="K", help="draws of annotated subjects")
    parser.add_argument("--only-repeats", nargs="+", type=int, metavar="R", help="of these draws only, counted from 0")
    parser.add_argument(
        "--folds", nargs="+", type=int, metavar="K", help="folds of the cross-validation (default: all)"
    )
    parser.add_argument("--devices", type=positive, default=1, metavar="N", help="GPUs that share a batch (default: 1)")
    parser.add_argument("--keep-going", action="store_true", help="go on when a cell fails; exit code 1 at the end")
    parser.add_argument("--overwrite", action="store_true", help="redo finished cells")


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, needs=("slices", "finetuning"))
    from data.layouts import find_subjects
    from data.splits import chosen_folds, make_splits
    from training.devices import check_batch_sizes, data_parallel

    cells = cells_of_grid(config, options)
    check_batch_sizes(options.devices, {"finetuning.training": config.finetuning.training.batch_size})
    data = config.plain()["data"]
    files = find_subjects(config.data.root, data["contrasts"], data["label"], data["mask"])
    splits = chosen_folds(make_splits(data["splits"], config.data.root, files, config.seed), options.folds)
    trainers = {}  # one per network shape: all cells and folds of that shape share one compiled step
    grids = [SplitGrid(config, split, files, trainers) for split in splits]
    for grid in grids:
        grid.check(cells, options.overwrite)
    with data_parallel(options.devices):
        failed = [name for grid in grids for name in grid.run(options.keep_going)]
    for line in failed:
        log.error("failed: %s", line)
    log.info("next: python reproduce_tables.py --config %s", options.config)
    return 1 if failed else 0


def cells_of_grid(config, options):
    """List `(contrasts, init, n, repeat)` of the grid, in the order in which they run."""
    grid, known = config.finetuning, {"random", *(config.pretraining.stages if config.pretraining else ())}
    for name in options.contrasts or ():
        if name not in grid.contrasts:
            raise InputError(f"--contrasts {name}: not one of finetuning.contrasts ({', '.join(grid.contrasts)})")
    for name in options.init or ():
        if name not in known:
            raise InputError(f"--init {name}: neither random nor a stage of pretraining ({', '.join(sorted(known))})")
    repeats = range(options.repeats or grid.repeats)
    for repeat in options.only_repeats or ():
        if repeat not in repeats:
            raise InputError(f"--only-repeats {repeat}: there are {len(repeats)}, counted from 0")
    return list(
        itertools.product(
            options.contrasts or grid.contrasts,
            options.init or grid.inits,
            options.subjects_n or grid.subjects_n,
            options.only_repeats or repeats,
        )
    )


class SplitGrid:
    """The cells of one split: its data, its pretrained weights, its folder."""

    def __init__(self, config, split, files, trainers):
        from data.h5_store import SliceStore

        self.config, self.split, self.files, self.trainers = config, split, files, trainers
        self.folder = split.folder(config.work_dir)
        self.store = SliceStore(self.folder / "h5" / "annotated.h5")
        self.store.check_hash(config.hash_of_slices())
        self.labels = list(config.data.labels)
        self.store.check_origin(split=split.to_dict(), seed=config.seed, labels=self.labels)
        annotated = {part: [s for s in getattr(split, part) if files[s].label] for part in ("train", "val", "test")}
        empty = [part for part, subjects in annotated.items() if not subjects]
        if empty:
            raise InputError(f"data.splits: no subject of {split.name or 'the split'}/{empty[0]} has a label map")
        self.train_subjects, self.val_subjects, self.test_subjects = annotated.values()
        self._reference = functools.lru_cache(maxsize=None)(self._read_reference)

    def cell_folder(self, contrasts, init, n, repeat):
        return self.folder / "finetuning" / contrasts / init / f"n{n:02d}" / f"r{repeat}"

    def check(self, cells, overwrite):
        """Find every mistake before the first cell: too few subjects, missing weights, leaks, other configs."""
        from data.splits import annotated_subsets
        from models.weights import read_weights

        sizes, repeats = {n for _, _, n, _ in cells}, 1 + max(repeat for *_, repeat in cells)
        self.subsets = annotated_subsets(self.train_subjects, sorted(sizes), repeats, self.config.seed)
        self.pretrained, mistakes = {}, []
        for init in sorted({init for _, init, *_ in cells} - {"random"}):
            weights = self.folder / "pretraining" / init / "weights.npz"
            if not weights.exists():
                mistakes.append(f"{weights}: no such file; run constrained_contrastive_learning.py first")
                continue
            arrays, metadata = read_weights(weights)
            self.pretrained[init] = (arrays, metadata.get("contrasts"))
            seen = {*metadata.get("seen", ()), *(s for part in metadata.get("subjects", {}).values() for s in part)}
            leaked = sorted(seen & set(self.test_subjects))
            mistakes += [f"{subject}: test subject, but '{init}' was pretrained on it" for subject in leaked]
            if metadata.get("config_hash") != self.config.hash_of_stage(init):
                mistakes.append(f"{weights}: made with another config; run step 3 again with --overwrite")
        if mistakes:
            raise InputError(mistakes)
        self.todo = [cell for cell in cells if overwrite or not self.is_finished(cell)]
        for cell in self.todo:  # what is about to be redone must not count as finished if it is interrupted
            (self.cell_folder(*cell) / "metrics.json").unlink(missing_ok=True)
        if len(self.todo) < len(cells):
            log.info("%s: %d of %d cells were finished before", self.folder, len(cells) - len(self.todo), len(cells))

    def is_finished(self, cell):
        """True when the cell's metrics are there; InputError when they come from another config, seed or split."""
        metrics = self.cell_folder(*cell) / "metrics.json"
        if not metrics.exists():
            return False
        found = read_json(metrics)
        found["tested"] = sorted({row["subject"] for row in found["per_subject"]})
        expected = self.origin(*cell) | {"tested": sorted(self.test_subjects)}
        differing = [key for key, value in expected.items() if found.get(key) != value]
        if differing:
            raise InputError(
                f"{metrics.parent}: made with another {differing[0].replace('_', ' ')}; give --overwrite, "
                "or another --work-dir"
            )
        return True

    def origin(self, contrasts, init, n, repeat):
        """What a cell was made from; written to metrics.json and compared before a cell is reused."""
        return {
            "config_hash": self.config.hash_of_cell(contrasts, init),
            "seed": self.config.seed,
            "train_subjects": list(self.subsets[n, repeat]),
            "validation_subjects": list(self.val_subjects),
            "labels": self.labels,
        }

    def run(self, keep_going):
        """Run the unfinished cells; returns one line for each that failed."""
        failed = []
        for cell in progress(self.todo, f"Finetuning {self.split.name}".strip()):
            try:
                self.run_cell(*cell)
            except InputError as error:
                if not keep_going:
                    raise
                failed.append(f"{self.cell_folder(*cell)}: {error}")
        return failed

    def run_cell(self, contrasts, init, n, repeat):
        """Train on the annotated subjects of one cell, predict every test subject, write what came out."""
        from models.weights import load_weights, save_weights
        from training.checkpoints import drop_checkpoint

        config, folder = self.config, self.cell_folder(contrasts, init, n, repeat)
        channels = channel_names(config.data.contrasts, config.finetuning.contrasts[contrasts])
        subjects, origin = self.subsets[n, repeat], self.origin(contrasts, init, n, repeat)
        # Cells that differ only by their initialisation share random weights, order and augmentation: a fair pair.
        seed = child_seed(config.seed, "finetuning", self.split.name, contrasts, n, repeat)
        started = time.monotonic()
        with open_run(folder, config.plain(), config.seed):
            trainer = self.trainers.get(len(channels)) or build_trainer(config, len(channels))
            self.trainers[len(channels)] = trainer
            arrays, source = self.pretrained.get(init, (None, None))
            report = trainer.start_from(
                child_seed(config.seed, "weights", repeat), arrays, source_contrasts=source, target_contrasts=channels
            )
            log.info("%s: %s", folder, report.summary() if report else "random initialisation")
            training, validation = (self.slices(channels, chosen) for chosen in (subjects, self.val_subjects))
            name = str(folder.relative_to(config.work_dir))
            trainer.train(*training, *validation, seed=seed, folder=folder, tag=json.dumps(origin), name=name)
            # Half precision on disk; what is scored is what is stored, so predict.py gives the scored label maps.
            save_weights(
                trainer.network,
                folder / "weights.npz",
                half=True,
                config_hash=origin["config_hash"],
                contrasts=channels,
            )
            load_weights(trainer.network, folder / "weights.npz")
            rows = self.score(trainer.network, channels, folder / "predictions")
            cell = {"split": self.split.name, "contrasts": contrasts, "init": init, "n_annotated": n, "repeat": repeat}
            cell["annotated_available"] = len(self.train_subjects)
            times = {"duration_s": round(time.monotonic() - started, 1), "compile_s": round(trainer.compile_s, 2)}
            write_json(folder / "model.json", self.describe_model(channels, origin))
            # Written last: a folder with metrics.json is a finished cell.
            write_json(folder / "metrics.json", origin | cell | times | {"per_subject": rows})
            drop_checkpoint(folder)
            share = times["compile_s"] / max(times["duration_s"], 0.1)
            log.info("%s: %.1f s, %.0f %% of them compiling", name, times["duration_s"], 100 * min(share, 1))

    def slices(self, channels, subjects):
        """Images and labels of all slices of some subjects."""
        rows = self.store.rows_of(subjects)
        return self.store.images(channels, rows), self.store.labels(rows)

    def score(self, network, channels, folder):
        """Predict every test subject on its own grid; returns the rows of metrics.json."""
        from data.volumes import write_nifti
        from evaluation.inference import predict_subject
        from evaluation.metrics import score_subject

        rows = []
        for subject in self.test_subjects:
            grid, images = self.store.grid(subject), self.store.images(channels, self.store.rows_of([subject]))
            prediction = predict_subject(network, images, grid, self.config.finetuning.training.batch_size)
            write_nifti(folder / f"{subject}.nii.gz", prediction, grid.affine)
            spacing = tuple(grid.spacing) if self.config.data.voxel_size_known else None
            settings = self.config.evaluation
            tolerance, regions = settings.surface_tolerance_mm, settings.regions
            scores = score_subject(prediction, self._reference(subject), spacing, self.labels, tolerance, regions)
            rows += [{"subject": subject} | {key: _json_number(value) for key, value in s.items()} for s in scores]
        return rows

    def _read_reference(self, subject):
        from data.volumes import read_label

        grid, data = self.store.grid(subject), self.config.data
        return read_label(self.files[subject], data.labels, data.ignored_label_values, grid.shape, grid.affine)

    def describe_model(self, channels, origin):
        """What predict.py must know of a network."""
        plain = self.config.plain()
        return {
            "name": self.config.name,
            "simulated": plain["data"]["simulated"],
            "contrasts": channels,
            "files": plain["data"]["contrasts"],
            "mask": plain["data"]["mask"],
            "labels": {name: index for index, name in enumerate(self.labels, start=1)},
            "voxel_size_known": plain["data"]["voxel_size_known"],
            "percentiles": list(self.config.percentiles()),
            "slices": plain["slices"],
            "filters": self.config.network.filters,
            "trained_on": origin["train_subjects"],
            "config_hash": origin["config_hash"],
        }


def _json_number(value):
    """JSON knows no NaN: a score that is not defined is null."""
    return None if isinstance(value, float) and value != value else value


def build_trainer(config, channels):
    """Build the trainer of one network shape."""
    from training.finetuning import SegmentationTrainer
    from training.tasks import use_precision

    settings = config.finetuning
    use_precision(settings.training.mixed_precision)
    loss, changes = settings.loss.model_dump(), settings.augmentation.model_dump()
    loss_name = loss.pop("name")
    if weights := loss.pop("class_weights"):
        loss["class_weights"] = [weights.get(name, 1.0) for name in ("background", *config.data.labels)]
    zoom = changes.pop("scale")
    return SegmentationTrainer(
        (*config.slices.image_size, channels),
        filters=config.network.filters,
        classes=len(config.data.labels) + 1,
        loss=loss_name,
        cross_entropy_weight=loss.pop("cross_entropy_weight"),
        loss_settings=loss,
        augmentation=changes | {"scale": (1 - zoom, 1 + zoom)},
        training=settings.training.model_dump(),
        evaluate_every=settings.evaluate_every,
    )


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
