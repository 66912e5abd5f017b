"""Step 4 of 5, for contrast synthesis: finetune networks that synthesise contrasts, and score all test subjects.

    python finetune_synthesis.py --config configs/lgg_tcga_synthesis.yaml
    python finetune_synthesis.py --config configs/lgg_tcga_synthesis.yaml --init random --subjects-n 2 --repeats 1

Reads   h5/volumes.h5 (step 2), pretraining/<init>/weights.npz (step 3) and the target contrasts of the test subjects.
Writes  for each cell of the grid, synthesis/<init>/n<NN>/r<K>/ with metrics.json, model.json and weights.npz (a model
        folder for predict.py), history.csv, predictions/<subject>_<target>.nii.gz and a run record.
Takes   a minute or two per cell on a CPU with small slices. Finished cells are skipped; an interrupted one resumes.
Next    python reproduce_tables.py --config FILE
"""

import dataclasses
import functools
import itertools

from training.cells import Cell, CellTask
from utils.checks import InputError
from utils.command_line import add_grid_options, chosen_axes, from_command_line
from utils.config.schema import channel_names
from utils.environment import make_deterministic
from utils.parallel import in_threads
from utils.runs import changed_since_step_2, child_seed, exit_code_of, lacks


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_grid_options, needs=("slices", "crops", "synthesis"))
    if options.deterministic:
        make_deterministic()
    from data.splits import chosen_folds, find_and_split
    from data.store.store import SliceStore
    from training.devices import check_batch_sizes
    from training.grid import Grid, run_grids

    stages = config.pretraining.stages if config.pretraining else ()
    cells = list(itertools.starmap(Cell, itertools.product(*chosen_axes(config.synthesis, stages, options))))
    check_batch_sizes(options.devices, {"synthesis.training": config.synthesis.training.batch_size})
    data = config.plain()["data"]
    failures = [] if options.keep_going else None
    files, splits = find_and_split(config.data.wanted(), data["splits"], config.seed, failures)
    splits = chosen_folds(splits, options.folds)
    store = SliceStore(config.work.volumes)
    store.check_hash(config.hash_of_slices())
    store.check_origin(seed=config.seed)
    trainers = {}  # all cells and folds share one compiled step
    grids = [Grid(Syntheses(config, split, files, store), trainers) for split in splits]
    return run_grids(grids, cells, options, failures=failures)


class Syntheses(CellTask):
    """Cells that synthesise contrasts; N counts subjects with all contrasts."""

    sizes_key = "synthesis.subjects_n"

    def __init__(self, config, split, files, store):
        from data.store.crops import open_volumes

        super().__init__()
        contrasts = config.data.contrasts
        self.config, self.split, self.files, self.store = config, split, files, store
        self.work = config.work.of(split.name)
        self.channels = channel_names(contrasts, config.synthesis.inputs)
        self.targets = channel_names(contrasts, config.synthesis.targets)
        self.train_subjects, self.val_subjects, self.test_subjects = (
            [name for name in part if name in files and name in store.subjects]
            for part in (split.train, split.val, split.test)
        )
        self.scored, self.made_of = self.test_subjects, {"inputs": self.channels, "targets": self.targets}
        # Open every subject at the start, to report one that is smaller than a crop before training.
        size = [*config.crops.size, 1][:3]
        subjects = [*self.train_subjects, *self.val_subjects]
        opened = open_volumes(store, subjects, [*self.channels, *self.targets], size)
        self.volumes = dict(zip(subjects, opened, strict=True))

    def absent(self):
        everyone = (*self.split.train, *self.split.val, *self.split.test)
        return [
            lacks(self.store.path, name) for name in everyone if name in self.files and name not in self.store.subjects
        ]

    def folder(self, cell):
        return self.work.cell("synthesis", cell.init, n=cell.n, repeat=cell.repeat)

    def names(self, cell):
        mask = "given" if self.config.data.mask else "found"
        return {"init": cell.init, "n_annotated": cell.n, "repeat": cell.repeat, "mask": mask}

    def inputs(self, cell):
        return self.channels

    def hash_of(self, cell):
        return self.config.hash_of_synthesis(cell.init)

    def seed_of(self, cell):
        return child_seed(self.config.seed, "synthesis", self.split.name, cell.n, cell.repeat)

    def trainer_key(self, cell):
        return "all cells"

    def build_trainer(self, cell):
        return build_trainer(self.config, len(self.channels))

    def train(self, trainer, cell, subjects, run):
        names = (subjects, self.val_subjects)
        trainer.train(*map(self.crops, names), dataclasses.replace(run, subjects=names))

    def crops(self, subjects):
        """Return the volumes of some subjects, to be cropped."""
        from data.store.crops import held_if_small
        from training.crops import Crops

        settings = self.config.crops
        return Crops(
            held_if_small([self.volumes[subject] for subject in subjects], resident=self.config.data.resident),
            tuple(settings.size),
            self.channels,
            self.targets,
            min_foreground=settings.min_foreground,
            per_volume=settings.validation,
        )

    def score(self, network, cell, folder):
        from evaluation.prediction.synthesis import synthesise_subject

        windows = {"overlap": self.config.synthesis.overlap, "batch_size": self.config.synthesis.training.batch_size}

        def synthesised():
            for subject in self.scored:
                grid, images = self.store.grid(subject), self.store.images(self.channels, self.store.rows_of([subject]))
                yield subject, grid, synthesise_subject(network, images, grid, self.config.crops.size, **windows)

        finished = in_threads(functools.partial(self._score_subject, folder), synthesised())
        return [row for rows in finished for row in rows]

    def judge(self, network, cell):
        return {}  # no class can be dead

    def _score_subject(self, folder, item):
        """Write and score the contrasts of one subject, while the network synthesises the next ones."""
        from data.scans.volumes import write_nifti
        from evaluation.scores.synthesis_metrics import score_synthesis

        subject, grid, prediction = item
        rows, ranges = [], self.store.intensities(subject)
        reference, mask = self.reference(subject)
        for row in score_synthesis(prediction, reference, self.targets, data_range=1.0, mask=mask):
            low, high = ranges[row["label"]]
            values = low + prediction[..., self.targets.index(row["label"])] * (high - low)
            write_nifti(folder / f"{subject}_{row['label']}.nii.gz", values, grid.affine, span=(low, high))
            rows.append({"subject": subject} | row | {"intensity_low": low, "intensity_high": high})
        return rows

    def read_reference(self, subject):
        """Return the acquired targets of a subject in [0, 1], `(X, Y, Z, K)`, and its mask, `(X, Y, Z)`."""
        import numpy as np

        from data.identity import is_unchanged
        from data.intensity import scale_between
        from data.scans.subject import SubjectReader

        files, ranges = self.files[subject], self.store.intensities(subject)
        reader = SubjectReader(files, self.config.data.wanted(), self.targets)
        volume, affine = reader.volume(), reader.grid.affine
        self._refuse_changed(files, volume, affine)
        mask = reader.mask()
        noted = self.store.hashes.get(subject, {})
        if mask is not None and "mask" in noted and not is_unchanged(mask, affine, noted["mask"]):
            raise InputError(changed_since_step_2(subject, files.mask))
        if mask is None:  # the foreground of all contrasts together, as found in step 1
            classes = self.store.constraint_maps(self.store.rows_of([subject]))
            mask = self.store.grid(subject).to_volume((classes > 0).astype(np.uint8), order=0) > 0
        return scale_between(volume, np.array([ranges[target] for target in self.targets])), mask

    def _refuse_changed(self, files, volume, affine):
        from data.identity import is_unchanged
        from data.layouts.subjects import file_of_channel

        noted = self.store.hashes.get(files.subject, {}).get("images")
        for number, target in enumerate(self.targets):
            name, _ = file_of_channel(self.config.data.contrasts, target)
            # N4 is not bit-identical on all machines.
            if noted is None or name in files.bias_correction:
                continue
            if not is_unchanged(volume[..., number], affine, noted.get(target)):
                raise InputError(changed_since_step_2(files.subject, files.contrasts[name]))

    def describe_model(self, cell, subjects):
        from utils.model_description import SynthesisModel

        ranges = {subject: self.store.intensities(subject) for subject in subjects}
        return SynthesisModel(
            **self.describe_data(cell, subjects),
            targets=self.targets,
            target_intensities={
                target: {subject: found[target] for subject, found in ranges.items()} for target in self.targets
            },
            crop_size=self.config.crops.size,
            overlap=self.config.synthesis.overlap,
        )


def build_trainer(config, channels):
    """Build the trainer of one network shape."""
    from losses.synthesis import synthesis_loss
    from models.unet import build_unet
    from training.augmentation import Changes
    from training.devices import use_precision
    from training.finetuning import SynthesisTrainer
    from training.schedules import Schedule

    settings, network = config.synthesis, config.network
    use_precision(settings.training.mixed_precision)
    shape, outputs = (*config.crops.size, channels), len(channel_names(config.data.contrasts, settings.targets))
    head = {"rank": len(shape) - 1, "head": "synthesis", "outputs": outputs}
    return SynthesisTrainer(
        functools.partial(build_unet, shape, filters=network.filters, **head),
        functools.partial(synthesis_loss, **settings.loss.model_dump()),
        remat=network.remat,
        augmentation=Changes(**settings.augmentation.changes(config.pixel_mm())),
        schedule=Schedule.of(settings.training.model_dump() | {"evaluate_every": settings.evaluate_every}),
        fresh_levels=settings.fresh_levels,
    )


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
