"""Step 4 of 5: finetune segmentation networks on a few annotated subjects and score them on all test subjects.

    python finetune_segmentation.py --config configs/lgg_tcga.yaml
    python finetune_segmentation.py --config configs/lgg_tcga.yaml --init random --subjects-n 2 --repeats 1

Reads   h5/annotated.h5 (step 2), pretraining/<init>/weights.npz (step 3) and the label maps of the test subjects.
Writes  for each cell of the grid, finetuning/<contrasts>/<init>/n<NN>/r<K>/ with metrics.json, model.json and
        weights.npz (a model folder for predict.py), history.csv, predictions/ (a label map per subject, and the names
        and colours of the classes for viewers) and a run record.
Takes   about a minute per cell on a CPU with small images. Finished cells are skipped; an interrupted one resumes.
Next    python reproduce_tables.py --config FILE

Before that, to choose settings (docs/choosing_settings.md):

    python finetune_segmentation.py --config configs/studies/lgg_tcga_trials.yaml --score-on validation

trains every trial of finetuning.trials for every init, scores only the annotated validation subjects, and writes
trials/<trial>/<contrasts>/<init>/n<NN>/r<K>/, trials/table.csv and trials/table.md. Test subjects are not read.
"""

import dataclasses
import functools
import itertools
import logging

from training.cells import Cell, CellTask
from utils.checks import InputError
from utils.command_line import add_grid_options, chosen_axes, from_command_line
from utils.config.schema import channel_names
from utils.environment import make_deterministic
from utils.parallel import in_threads
from utils.runs import child_seed, exit_code_of

log = logging.getLogger("mrccl")


def add_options(parser):
    parser.add_argument("--contrasts", nargs="+", metavar="NAME", help="input sets (default: all in the config)")
    text = "validation: run finetuning.trials to choose settings, without reading test subjects (default: test)"
    parser.add_argument("--score-on", choices=("test", "validation"), default="test", help=text)
    text = "with --score-on validation: trials to run (default: all in the config)"
    parser.add_argument("--trial", nargs="+", metavar="NAME", help=text)
    add_grid_options(parser)


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, needs=("slices", "finetuning"))
    if options.deterministic:
        make_deterministic()
    from data.splits import chosen_folds, find_and_split
    from training.devices import check_batch_sizes
    from training.grid import Grid, run_grids

    trials = chosen_trials(config, options)
    cells = cells_of_grid(config, options, trials or [""])
    task = Trials if trials else Segmentations
    check_batch_sizes(options.devices, batch_sizes(config, trials, options.init or config.finetuning.inits))
    data = config.plain()["data"]
    failures = [] if options.keep_going else None
    files, splits = find_and_split(config.data.wanted(), data["splits"], config.seed, failures)
    splits = chosen_folds(splits, options.folds)
    trainers = {}  # cells and folds with equal shapes and settings share one compiled step
    grids = [Grid(task(config, split, files), trainers) for split in splits]
    finish = functools.partial(compare_trials, config, options, cells, [split.name for split in splits])
    return run_grids(grids, cells, options, finish if trials else None, failures)


def chosen_trials(config, options):
    """List the names of the trials to run; none if test subjects are scored."""
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


def cells_of_grid(config, options, trials):
    """List the cells of the grid in the order in which they run, trial by trial."""
    grid = config.finetuning
    for name in options.contrasts or ():
        if name not in grid.contrasts:
            raise InputError(f"--contrasts {name}: not one of finetuning.contrasts ({', '.join(grid.contrasts)})")
    axes = chosen_axes(grid, config.pretraining.stages if config.pretraining else (), options)
    order = itertools.product(trials, options.contrasts or grid.contrasts, *axes)
    return [Cell(init, n, repeat, contrasts, trial) for trial, contrasts, init, n, repeat in order]


def batch_sizes(config, trials, inits):
    """Return the batch sizes of the trials, or else of the settings of the inits, by section of the config."""
    names = trials or {config.finetuning.chosen.get(init) for init in inits}
    settings = {name: config.finetuning.settings_of(None, name) for name in names}
    return {
        f"finetuning.trials.{name}.training" if name else "finetuning.training": section.training.batch_size
        for name, section in settings.items()
    }


class Segmentations(CellTask):
    """Cells that segment slices; N counts annotated subjects."""

    sizes_key, scored_part = "finetuning.subjects_n", "test"

    def __init__(self, config, split, files):
        from data.annotated import open_annotated

        super().__init__()
        self.config, self.split, self.files = config, split, files
        self.work, self.labels = config.work.of(split.name), list(config.data.labels)
        self.annotated = open_annotated(self.work.store("annotated"), split, files, **config.of_annotated())
        self.store = self.annotated.store
        members = {part: self.annotated.of(part) for part in ("train", "val", "test")}
        chosen = [config.finetuning.settings_of(init) for init in config.finetuning.inits]
        is_selecting = any(settings.training.needs_validation for settings in chosen)
        needed = {"train", self.scored_part} | ({"val"} if is_selecting else set())
        empty = [part for part in members if part in needed and not members[part]]
        if empty:
            where = f"{split.name or 'the split'}/{empty[0]}"
            raise InputError([*self.absent()] or f"data.splits: no subject of {where} has a label map")
        self.train_subjects, self.val_subjects, self.test_subjects = members.values()
        self.scored, self.made_of = members[self.scored_part], {"labels": self.labels}
        self.rows = self.store.rows_of([*self.train_subjects, *self.val_subjects])  # the only ones that training reads

    def absent(self):
        return self.annotated.absent()

    def folder(self, cell):
        return self.work.cell("finetuning", cell.contrasts, cell.init, n=cell.n, repeat=cell.repeat)

    def names(self, cell):
        return {"contrasts": cell.contrasts, "init": cell.init, "n_annotated": cell.n, "repeat": cell.repeat}

    def inputs(self, cell):
        return channel_names(self.config.data.contrasts, self.config.finetuning.contrasts[cell.contrasts])

    def hash_of(self, cell):
        return self.config.hash_of_cell(cell.contrasts, cell.init, cell.trial or None)

    def settings_of(self, cell):
        return self.config.finetuning.settings_of(cell.init, cell.trial or None)

    def trainer_key(self, cell):
        return len(self.inputs(cell)), self.settings_of(cell).model_dump_json()

    def build_trainer(self, cell):
        return build_trainer(self.config, len(self.inputs(cell)), self.settings_of(cell))

    def seed_of(self, cell):
        return child_seed(self.config.seed, "finetuning", self.split.name, cell.contrasts, cell.n, cell.repeat)

    def train(self, trainer, cell, subjects, run):
        from data.store.slices import in_memory_if, some_rows, stored_images, stored_labels
        from training.devices import free_bytes

        channels = self.inputs(cell)
        if trainer.source != (self.store.path, channels):  # all cells with these contrasts share the slices
            arrays = [stored_images(self.store, channels), stored_labels(self.store)]
            arrays = [some_rows(array, self.rows) for array in arrays]
            trainer.use(*in_memory_if(arrays, self.config.data.resident, free_bytes() // 2))
            trainer.source = (self.store.path, channels)
        names = [self.store.subjects[number] for number in self.store.subject_index[self.rows]]
        rows = (self.rows.searchsorted(self.store.rows_of(chosen)) for chosen in (subjects, self.val_subjects))
        trainer.train(*rows, dataclasses.replace(run, subjects=(names, names)))

    def predicted(self, network, cell, subjects):
        """Yield each subject with the class probabilities of its slices, `(D, H, W, K)`."""
        from evaluation.prediction.inference import predict_slices

        channels, batch_size = self.inputs(cell), self.settings_of(cell).training.batch_size
        for subject in subjects:
            yield (
                subject,
                predict_slices(network, self.store.images(channels, self.store.rows_of([subject])), batch_size),
            )

    def score(self, network, cell, folder):
        from data.label_tables import write_label_tables

        write_label_tables(folder, self.config.data.legend())
        finished = in_threads(
            functools.partial(self._score_subject, folder), self.predicted(network, cell, self.scored)
        )
        return [row for rows in finished for row in rows]

    def judge(self, network, cell):
        from evaluation.scores.dead_classes import DEAD, dead_labels, pooled_dice

        predicted = self.predicted(network, cell, self.val_subjects)
        pairs = ((found.argmax(-1), self.store.labels(self.store.rows_of([subject]))) for subject, found in predicted)
        dice = pooled_dice(pairs, self.labels)
        for label in dead_labels(dice):
            text = "%s: class '%s' is dead: Dice %.2f over the validation subjects, below %g; train for more updates"
            log.warning(text, self.folder(cell), label, dice[label], DEAD)
        return {"validation_dice": dice} if self.val_subjects else {}

    def _score_subject(self, folder, item):
        """Write and score the label map of one subject, while the network predicts the next ones."""
        from data.scans.volumes import write_nifti
        from evaluation.prediction.inference import label_map
        from evaluation.scores.label_maps import score_label_map

        subject, probabilities = item
        grid = self.store.grid(subject)
        prediction = label_map(probabilities, grid)
        write_nifti(folder / f"{subject}.nii.gz", prediction, grid.affine, intent="label")
        maps, is_mm = (prediction, self.reference(subject)), self.config.data.voxel_size_known
        settings = self.config.evaluation
        return score_label_map(subject, maps, grid, self.labels, settings, voxel_size_known=is_mm)

    def read_reference(self, subject):
        return self.annotated.read_reference(subject)

    def describe_model(self, cell, subjects):
        from utils.model_description import SegmentationModel

        colours = self.config.data.label_colours
        return SegmentationModel(
            **self.describe_data(cell, subjects),
            labels={name: index for index, name in enumerate(self.labels, start=1)},
            voxel_size_known=self.config.data.voxel_size_known,
            head_block=self.settings_of(cell).head_block,
            **({"label_colours": colours} if colours else {}),
        )


class Trials(Segmentations):
    """Cells of trials, scored on the annotated validation subjects."""

    scored_part = "val"

    def __init__(self, config, split, files):
        super().__init__(config, split, files)
        self.test_subjects = list(split.test)  # labelled or not: no stage may have been pretrained on them

    def folder(self, cell):
        return self.work.cell("trials", cell.trial, cell.contrasts, cell.init, n=cell.n, repeat=cell.repeat)

    def names(self, cell):
        kept = self.settings_of(cell).training.keep  # the epoch whose weights are scored
        return {"trial": cell.trial, **super().names(cell), "scored_on": "validation", "weights_kept": kept}


def compare_trials(config, options, cells, splits):
    """Write and print the table of the finished trials; returns what to type next."""
    from evaluation.report.formats import print_table
    from evaluation.scores.trials import collect_trials, compare, write_trials

    def is_current(metrics):
        trial, contrasts, init = (metrics[key] for key in ("trial", "contrasts", "init"))
        known = {"random", *(config.pretraining.stages if config.pretraining else ())}
        if trial not in settings.trials or contrasts not in settings.contrasts or init not in known:
            return False
        found = metrics["config_hash"], metrics.get("seed")
        return found == (config.hash_of_cell(contrasts, init, trial), config.seed)

    settings, folder = config.finetuning, config.work.trials
    results, outdated = collect_trials(config.work_dir, is_current)
    again = f"python finetune_segmentation.py {options.again}"
    if results is None:
        return f"{again} --score-on validation (no trial is finished)"
    asked = [(c.trial, c.contrasts, c.init, c.n, c.repeat, split) for c in cells for split in splits]
    comparison = compare(results, asked, settings.inits, list(settings.trials), outdated)
    write_trials(comparison, folder)
    print_table(comparison.table)
    print(comparison.conclusion())
    if comparison.missing:
        return f"{again} --score-on validation (no winner is named: {len(comparison.missing)} gaps, {folder}/table.md)"
    return f"put 'chosen' of {folder / 'table.md'} into finetuning: of {options.config}; then {again}"


def build_trainer(config, channels, settings=None):
    """Build the trainer of one network shape and one set of settings (default: those of the section itself)."""
    from losses.segmentation import segmentation_loss
    from models.unet import build_unet
    from training.augmentation import Changes
    from training.devices import use_precision
    from training.finetuning import SegmentationTrainer
    from training.schedules import Schedule

    settings = settings or config.finetuning
    use_precision(settings.training.mixed_precision)
    classes, loss = ("background", *config.data.labels), settings.loss.model_dump()
    if weights := loss.pop("class_weights"):
        loss["class_weights"] = [weights.get(name, 1.0) for name in classes]
    shape, head = (*config.slices.image_size, channels), {"outputs": len(classes), "head_block": settings.head_block}
    return SegmentationTrainer(
        functools.partial(build_unet, shape, filters=config.network.filters, **head),
        functools.partial(segmentation_loss, **loss),
        augmentation=Changes(**settings.augmentation.changes(config.pixel_mm())),
        schedule=Schedule.of(settings.training.model_dump() | {"evaluate_every": settings.evaluate_every}),
        remat=config.network.remat,
        fresh_levels=settings.fresh_levels,
    )


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
