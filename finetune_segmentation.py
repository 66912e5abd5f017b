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

from utils.checks import InputError
from utils.config import add_grid_options, chosen_axes, from_command_line
from utils.environment import make_deterministic
from utils.parallel import in_threads
from utils.runs import child_seed, exit_code_of
from utils.schema import channel_names


def add_options(parser):
    parser.add_argument("--contrasts", nargs="+", metavar="NAME", help="input sets (default: all in the config)")
    add_grid_options(parser)


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, needs=("slices", "finetuning"))
    if options.deterministic:
        make_deterministic()
    from data.layouts import find_subjects
    from data.splits import chosen_folds, make_splits
    from training.devices import check_batch_sizes
    from training.grid import Grid, run_grids

    cells = cells_of_grid(config, options)
    check_batch_sizes(options.devices, {"finetuning.training": config.finetuning.training.batch_size})
    data = config.plain()["data"]
    files = find_subjects(**config.data.places())
    splits = chosen_folds(make_splits(data["splits"], config.data.root, files, config.seed), options.folds)
    trainers = {}  # one per network shape: all cells and folds of that shape share one compiled step
    grids = [Grid(config, split, Segmentations(config, split, files), trainers) for split in splits]
    return run_grids(grids, cells, options)


def cells_of_grid(config, options):
    """List `(contrasts, init, n, repeat)` of the grid, in the order in which they run."""
    grid = config.finetuning
    for name in options.contrasts or ():
        if name not in grid.contrasts:
            raise InputError(f"--contrasts {name}: not one of finetuning.contrasts ({', '.join(grid.contrasts)})")
    axes = chosen_axes(grid, config.pretraining.stages if config.pretraining else (), options)
    return list(itertools.product(options.contrasts or grid.contrasts, *axes))


class Segmentations:
    """What `training.grid.Grid` asks of cells `(contrasts, init, n, repeat)`; N counts annotated subjects."""

    sizes_key = "finetuning.subjects_n"

    def __init__(self, config, split, files):
        from data.h5_store import SliceStore

        self.config, self.split, self.files = config, split, files
        self.build_trainer = functools.partial(build_trainer, config)
        self.folder, self.labels = split.folder(config.work_dir), list(config.data.labels)
        self.store = SliceStore(self.folder / "h5" / "annotated.h5")
        self.store.check_hash(config.hash_of_slices())
        self.store.check_origin(split=split.to_dict(), seed=config.seed, labels=self.labels)
        annotated = {part: [s for s in getattr(split, part) if files[s].label] for part in ("train", "val", "test")}
        empty = [part for part, subjects in annotated.items() if not subjects]
        if empty:
            raise InputError(f"data.splits: no subject of {split.name or 'the split'}/{empty[0]} has a label map")
        self.subjects, self.made_of = list(annotated.values()), {"labels": self.labels}

    def cell_folder(self, contrasts, init, n, repeat):
        return self.folder / "finetuning" / contrasts / init / f"n{n:02d}" / f"r{repeat}"

    def names(self, contrasts, init, n, repeat):
        return {"contrasts": contrasts, "init": init, "n_annotated": n, "repeat": repeat}

    def inputs(self, contrasts, init, n, repeat):
        return channel_names(self.config.data.contrasts, self.config.finetuning.contrasts[contrasts])

    def hash_of_cell(self, contrasts, init, n, repeat):
        return self.config.hash_of_cell(contrasts, init)

    def seed_of(self, contrasts, init, n, repeat):
        return child_seed(self.config.seed, "finetuning", self.split.name, contrasts, n, repeat)

    def train(self, trainer, cell, subjects, **run):
        from data.slices import in_memory_if, stored_images, stored_labels
        from training.devices import free_bytes

        channels = self.inputs(*cell)
        if trainer.source != (self.store.path, channels):  # the same slices serve all cells that see these contrasts
            arrays = [stored_images(self.store, channels), stored_labels(self.store)]
            trainer.use(*in_memory_if(arrays, self.config.data.resident, free_bytes() // 2))
            trainer.source = (self.store.path, channels)
        names = [self.store.subjects[number] for number in self.store.subject_index]
        rows = (self.store.rows_of(chosen) for chosen in (subjects, self.subjects[1]))
        trainer.train(*rows, subjects=(names, names), **run)

    def score(self, network, cell, folder):
        """Predict every test subject on its own grid; returns the rows of metrics.json."""
        from evaluation.inference import predict_slices

        channels, batch_size = self.inputs(*cell), self.config.finetuning.training.batch_size

        def predicted():
            for subject in self.subjects[2]:
                images = self.store.images(channels, self.store.rows_of([subject]))
                yield subject, self.store.grid(subject), predict_slices(network, images, batch_size)

        finished = in_threads(functools.partial(self._score_subject, folder), predicted())
        return [row for rows in finished for row in rows]

    def _score_subject(self, folder, item):
        """Write and score the label map of one subject; what the network is not needed for."""
        from data.volumes import write_nifti
        from evaluation.inference import label_map
        from evaluation.metrics import score_subject

        subject, grid, probabilities = item
        prediction = label_map(probabilities, grid)
        write_nifti(folder / f"{subject}.nii.gz", prediction, grid.affine)
        spacing = tuple(grid.spacing) if self.config.data.voxel_size_known else None
        tolerance, regions = self.config.evaluation.surface_tolerance_mm, self.config.evaluation.regions
        scores = score_subject(prediction, self._read_reference(subject), spacing, self.labels, tolerance, regions)
        return [{"subject": subject} | score for score in scores]

    def _read_reference(self, subject):
        from data.volumes import read_label

        grid, data = self.store.grid(subject), self.config.data
        return read_label(self.files[subject], data.labels, data.ignored_label_values, grid.shape, grid.affine)

    def describe_model(self, inputs, subjects):
        plain = self.config.plain()
        return {
            "name": self.config.name,
            "simulated": plain["data"]["simulated"],
            "contrasts": inputs,
            "files": plain["data"]["contrasts"],
            **self.config.reading(),
            "mask": plain["data"]["mask"],
            "labels": {name: index for index, name in enumerate(self.labels, start=1)},
            "voxel_size_known": plain["data"]["voxel_size_known"],
            "percentiles": list(self.config.percentiles()),
            "slices": plain["slices"],
            "filters": self.config.network.filters,
            "trained_on": subjects,
        }


def build_trainer(config, channels):
    """Build the trainer of one network shape."""
    from training.devices import use_precision
    from training.finetuning import SegmentationTrainer

    settings = config.finetuning
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
        loss_settings=loss,
        augmentation=settings.augmentation.changes(),
        training=settings.training.model_dump(),
        evaluate_every=settings.evaluate_every,
    )


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
