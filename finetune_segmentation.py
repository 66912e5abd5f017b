"""Step 4 of 5: finetune segmentation networks on few annotated subjects and score them on all test subjects.

    python finetune_segmentation.py --config configs/lgg_tcga.yaml
    python finetune_segmentation.py --config configs/lgg_tcga.yaml --init random --subjects-n 2 --repeats 1

Reads   h5/annotated.h5 (step 2), pretraining/<init>/weights.npz (step 3) and the label maps of the test subjects.
Writes  finetuning/<contrasts>/<init>/n<NN>/r<K>/ with metrics.json, model.json and weights.npz (together a model folder
        for predict.py), history.csv, predictions/<subject>.nii.gz and a run record, for each cell of the grid.
Takes   about a minute a cell on a CPU with small images. Finished cells are skipped; an interrupted one resumes.
Next    python reproduce_tables.py --config FILE

To choose settings (docs/choosing_settings.md), before any of this:

    python finetune_segmentation.py --config configs/studies/lgg_tcga_trials.yaml --score-on validation

trains every trial of finetuning.trials for every init, scores the annotated validation subjects only, and writes
trials/<trial>/<contrasts>/<init>/n<NN>/r<K>/, trials/table.csv and trials/table.md. It reads nothing of test subjects.
"""

import functools
import itertools
import logging

from utils.checks import InputError
from utils.config import add_grid_options, chosen_axes, from_command_line
from utils.environment import make_deterministic
from utils.parallel import in_threads
from utils.runs import changed_since_step_2, child_seed, exit_code_of, progress
from utils.schema import channel_names

log = logging.getLogger("mrccl")


def add_options(parser):
    parser.add_argument("--contrasts", nargs="+", metavar="NAME", help="input sets (default: all in the config)")
    text = "validation: run finetuning.trials, to choose settings; test subjects are not touched (default: test)"
    parser.add_argument("--score-on", choices=("test", "validation"), default="test", help=text)
    text = "with --score-on validation: trials to run (default: all in the config)"
    parser.add_argument("--trial", nargs="+", metavar="NAME", help=text)
    add_grid_options(parser)


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, needs=("slices", "finetuning"))
    if options.deterministic:
        make_deterministic()
    from data.layouts import find_subjects
    from data.splits import chosen_folds, make_splits
    from training.devices import check_batch_sizes
    from training.grid import Grid, run_grids

    trials = chosen_trials(config, options)
    cells = cells_of_grid(config, options)
    cells = [(trial, *cell) for trial in trials for cell in cells] if trials else cells
    work = Trials if trials else Segmentations
    check_batch_sizes(options.devices, batch_sizes(config, trials, options.init or config.finetuning.inits))
    data = config.plain()["data"]
    files = find_subjects(**config.data.places())
    splits = chosen_folds(make_splits(data["splits"], config.data.root, files, config.seed), options.folds)
    trainers = {}  # all cells and folds of one shape and the same settings share a compiled step
    grids = [Grid(config, split, work(config, split, files), trainers) for split in splits]
    finish = functools.partial(compare_trials, config, options, cells, [split.name for split in splits])
    return run_grids(grids, cells, options, finish if trials else None)


def chosen_trials(config, options):
    """List the names of the trials to run; none where test subjects are scored."""
    known = config.finetuning.trials
    if options.score_on == "test":
        if options.trial:
            raise InputError("--trial: trials are scored on validation subjects; give --score-on validation as well")
        return []
    if not known:
        raise InputError(
            f"{options.config}: --score-on validation needs finetuning.trials, such as "
            "trials: {as_it_stands: {}, faster: {training.learning_rate: 2e-3}}"
        )
    if unknown := [name for name in options.trial or () if name not in known]:
        raise InputError(f"--trial {unknown[0]}: not one of finetuning.trials ({', '.join(known)})")
    return [name for name in known if name in (options.trial or known)]


def cells_of_grid(config, options):
    """List `(contrasts, init, n, repeat)` of the grid, in the order in which they run."""
    grid = config.finetuning
    for name in options.contrasts or ():
        if name not in grid.contrasts:
            raise InputError(f"--contrasts {name}: not one of finetuning.contrasts ({', '.join(grid.contrasts)})")
    axes = chosen_axes(grid, config.pretraining.stages if config.pretraining else (), options)
    return list(itertools.product(options.contrasts or grid.contrasts, *axes))


def batch_sizes(config, trials, inits):
    """Return the batch sizes of trials, or else of what is chosen for some inits, by the section of the config."""
    names = trials or {config.finetuning.chosen.get(init) for init in inits}
    settings = {name: config.finetuning.settings_of(None, name) for name in names}
    return {
        f"finetuning.trials.{name}.training" if name else "finetuning.training": section.training.batch_size
        for name, section in settings.items()
    }


class Segmentations:
    """What `training.grid.Grid` asks of cells `(contrasts, init, n, repeat)`; N counts annotated subjects."""

    sizes_key, scored_part = "finetuning.subjects_n", "test"

    def __init__(self, config, split, files):
        from data.h5_store import SliceStore

        self.config, self.split, self.files = config, split, files
        self.folder, self.labels = split.folder(config.work_dir), list(config.data.labels)
        self.store = SliceStore(self.folder / "h5" / "annotated.h5")
        self.store.check_hash(config.hash_of_slices())
        self.store.check_origin(split=split.to_dict(), seed=config.seed, labels=self.labels)
        annotated = {part: [s for s in getattr(split, part) if files[s].label] for part in ("train", "val", "test")}
        chosen = [config.finetuning.settings_of(init) for init in config.finetuning.inits]
        is_selecting = any(settings.training.needs_validation for settings in chosen)
        needed = {"train", self.scored_part} | ({"val"} if is_selecting else set())
        empty = [part for part in annotated if part in needed and not annotated[part]]
        if empty:
            raise InputError(f"data.splits: no subject of {split.name or 'the split'}/{empty[0]} has a label map")
        self.subjects, self.made_of = list(annotated.values()), {"labels": self.labels}
        self.scored = annotated[self.scored_part]
        self.rows = self.store.rows_of([*annotated["train"], *annotated["val"]])  # training reads no others

    def cell_folder(self, contrasts, init, n, repeat):
        return self.folder / "finetuning" / contrasts / init / f"n{n:02d}" / f"r{repeat}"

    def names(self, contrasts, init, n, repeat):
        return {"contrasts": contrasts, "init": init, "n_annotated": n, "repeat": repeat}

    def inputs(self, contrasts, init, n, repeat):
        return channel_names(self.config.data.contrasts, self.config.finetuning.contrasts[contrasts])

    def hash_of_cell(self, contrasts, init, n, repeat):
        return self.config.hash_of_cell(contrasts, init)

    @staticmethod
    def settings_of(config, contrasts, init, n, repeat):
        return config.finetuning.settings_of(init)

    def trainer_key(self, cell):
        return len(self.inputs(*cell)), self.settings_of(self.config, *cell).model_dump_json()

    def build_trainer(self, cell):
        return build_trainer(self.config, len(self.inputs(*cell)), self.settings_of(self.config, *cell))

    def seed_of(self, contrasts, init, n, repeat):
        return child_seed(self.config.seed, "finetuning", self.split.name, contrasts, n, repeat)

    def train(self, trainer, cell, subjects, **run):
        from data.slices import in_memory_if, some_rows, stored_images, stored_labels
        from training.devices import free_bytes

        channels = self.inputs(*cell)
        if trainer.source != (self.store.path, channels):  # the same slices serve all cells that see these contrasts
            arrays = [stored_images(self.store, channels), stored_labels(self.store)]
            arrays = [some_rows(array, self.rows) for array in arrays]
            trainer.use(*in_memory_if(arrays, self.config.data.resident, free_bytes() // 2))
            trainer.source = (self.store.path, channels)
        names = [self.store.subjects[number] for number in self.store.subject_index[self.rows]]
        rows = (self.rows.searchsorted(self.store.rows_of(chosen)) for chosen in (subjects, self.subjects[1]))
        trainer.train(*rows, subjects=(names, names), **run)

    def score(self, network, cell, folder):
        """Predict every subject that is scored on its own grid; returns the rows of metrics.json."""
        from evaluation.inference import predict_slices

        channels, batch_size = self.inputs(*cell), self.settings_of(self.config, *cell).training.batch_size

        def predicted():
            for subject in self.scored:
                images = self.store.images(channels, self.store.rows_of([subject]))
                yield subject, self.store.grid(subject), predict_slices(network, images, batch_size)

        finished = in_threads(functools.partial(self._score_subject, folder), predicted())
        return [row for rows in finished for row in rows]

    def judge(self, network, cell):
        """Find dead classes on the validation subjects; returns what metrics.json says of these."""
        from evaluation.dead_classes import DEAD, dead_labels, pooled_dice
        from evaluation.inference import predict_slices

        channels, batch_size = self.inputs(*cell), self.settings_of(self.config, *cell).training.batch_size
        places = map(self.store.rows_of, ([subject] for subject in self.subjects[1]))
        dice = pooled_dice(
            (
                (
                    predict_slices(network, self.store.images(channels, rows), batch_size).argmax(-1),
                    self.store.labels(rows),
                )
                for rows in places
            ),
            self.labels,
        )
        for label in dead_labels(dice):
            text = "%s: class '%s' is dead: Dice %.2f over the validation subjects, below %g; train for more updates"
            log.warning(text, self.cell_folder(*cell), label, dice[label], DEAD)
        return {"validation_dice": dice} if self.subjects[1] else {}

    def _score_subject(self, folder, item):
        """Write and score the label map of one subject; what the network is not needed for."""
        from data.geometry import voxel_ml
        from data.volumes import write_nifti
        from evaluation.inference import label_map
        from evaluation.metrics import score_subject

        subject, grid, probabilities = item
        prediction = label_map(probabilities, grid)
        write_nifti(folder / f"{subject}.nii.gz", prediction, grid.affine)
        spacing = tuple(grid.spacing) if self.config.data.voxel_size_known else None
        tolerance, regions = self.config.evaluation.surface_tolerance_mm, self.config.evaluation.regions
        reference, voxel = self._read_reference(subject), {"voxel_ml": voxel_ml(grid.affine)}
        scores = score_subject(prediction, reference, spacing, self.labels, tolerance, regions, **voxel)
        return [{"subject": subject} | score for score in scores]

    def check_references(self):
        """Refuse label maps of scored subjects that are others than those that step 2 packed, before any training."""
        problems = []
        for subject in progress(self.scored, "Checking references"):
            try:
                self._read_reference(subject)
            except InputError as error:
                problems += error.lines
        if problems:
            raise InputError(problems)

    def _read_reference(self, subject):
        from data.identity import is_unchanged
        from data.volumes import read_label

        grid, data, files = self.store.grid(subject), self.config.data, self.files[subject]
        classes = read_label(files, data.labels, data.ignored_label_values, grid.shape, grid.affine)
        noted = self.store.hashes.get(subject, {})
        if "label" in noted and not is_unchanged(classes, grid.affine, noted["label"]):
            raise InputError(changed_since_step_2(subject, files.label))
        return classes

    def describe_model(self, cell, subjects):
        plain = self.config.plain()
        return {
            "name": self.config.name,
            "simulated": plain["data"]["simulated"],
            "contrasts": self.inputs(*cell),
            "files": plain["data"]["contrasts"],
            **self.config.reading(),
            "mask": plain["data"]["mask"],
            "labels": {name: index for index, name in enumerate(self.labels, start=1)},
            "voxel_size_known": plain["data"]["voxel_size_known"],
            "percentiles": list(self.config.percentiles()),
            "slices": plain["slices"],
            "filters": self.config.network.filters,
            "head_block": self.settings_of(self.config, *cell).head_block,
            "field": self.field_of(subjects),
            "volumes": {name: list(found) for name, found in self.files[subjects[0]].volumes.items()},
            "trained_on": subjects,
        }

    def field_of(self, subjects):
        """What predict.py compares new scans with."""
        from data.field_of_view import field_of_training

        return field_of_training(
            map(self.store.grid, subjects),
            is_size_known=self.config.data.voxel_size_known,
            foreground_outside=self.store.attributes.get("foreground_outside"),
        )


class Trials(Segmentations):
    """Cells `(trial, contrasts, init, n, repeat)`, scored on the annotated validation subjects."""

    scored_part = "val"

    def __init__(self, config, split, files):
        super().__init__(config, split, files)
        self.subjects[2] = list(split.test)  # with or without a label: no stage may have been pretrained on them

    def cell_folder(self, trial, contrasts, init, n, repeat):
        return self.folder / "trials" / trial / contrasts / init / f"n{n:02d}" / f"r{repeat}"

    def names(self, trial, *cell):
        kept = self.settings_of(self.config, trial, *cell).training.keep  # the epoch whose weights are scored
        return {"trial": trial, **super().names(*cell), "scored_on": "validation", "weights_kept": kept}

    def inputs(self, trial, *cell):
        return super().inputs(*cell)

    def hash_of_cell(self, trial, contrasts, init, n, repeat):
        return self.config.hash_of_cell(contrasts, init, trial)

    def seed_of(self, trial, *cell):
        return super().seed_of(*cell)

    @staticmethod
    def settings_of(config, trial, contrasts, init, n, repeat):
        return config.finetuning.settings_of(init, trial)


def compare_trials(config, options, cells, splits):
    """Write and print the table of the trials that are there; returns what to type next."""
    from evaluation.formats import print_table
    from evaluation.trials import collect_trials, compare, write_trials

    def is_current(metrics):
        trial, contrasts, init = (metrics[key] for key in ("trial", "contrasts", "init"))
        known = {"random", *(config.pretraining.stages if config.pretraining else ())}
        if trial not in settings.trials or contrasts not in settings.contrasts or init not in known:
            return False
        found = metrics["config_hash"], metrics.get("seed")
        return found == (config.hash_of_cell(contrasts, init, trial), config.seed)

    settings, folder = config.finetuning, config.work_dir / "trials"
    results, outdated = collect_trials(config.work_dir, is_current)
    again = f"python finetune_segmentation.py {options.again}"
    if results is None:
        return f"{again} --score-on validation (no trial is finished)"
    asked = [(*cell, split) for cell in cells for split in splits]
    comparison = compare(results, asked, settings.inits, list(settings.trials), outdated)
    write_trials(comparison, folder)
    print_table(comparison.table)
    print(comparison.conclusion())
    if comparison.missing:
        return f"{again} --score-on validation (no winner is named: {len(comparison.missing)} gaps, {folder}/table.md)"
    return f"put 'chosen' of {folder / 'table.md'} into finetuning: of {options.config}; then {again}"


def build_trainer(config, channels, settings=None):
    """Build the trainer of one network shape and one set of settings (default: the section as it stands)."""
    from training.devices import use_precision
    from training.finetuning import SegmentationTrainer

    settings = settings or config.finetuning
    use_precision(settings.training.mixed_precision)
    loss = settings.loss.model_dump()
    loss_name = loss.pop("name")
    if weights := loss.pop("class_weights"):
        loss["class_weights"] = [weights.get(name, 1.0) for name in ("background", *config.data.labels)]
    return SegmentationTrainer(
        (*config.slices.image_size, channels),
        filters=config.network.filters,
        classes=len(config.data.labels) + 1,
        loss=loss_name,
        cross_entropy_weight=loss.pop("cross_entropy_weight"),
        cross_entropy=loss.pop("cross_entropy"),
        loss_settings=loss,
        augmentation=settings.augmentation.changes(config.pixel_mm()),
        training=settings.training.model_dump(),
        evaluate_every=settings.evaluate_every,
        head_block=settings.head_block,
        fresh_levels=settings.fresh_levels,
    )


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
