"""Optional, after step 3: what the representations of pretrained networks encode.

    python -m tools.visualize_representations --config configs/renal_demo.yaml
    python -m tools.visualize_representations --config configs/renal_demo.yaml --init random constrained
    python -m tools.visualize_representations --config configs/renal_demo.yaml --only pixels

Reads   h5/annotated.h5, or without labels h5/volumes.h5 (step 2), pretraining/<stage>/weights.npz (step 3) and, for
        simulated scans, the true T1, T2 and PD beside them. Slices are drawn at random. Volumes (network.rank: 3) are
        cropped as in validation: crops.validation crops of each subject, at most 200 of all training and of all test
        subjects, with cubic patches.
Writes  report/representations/ in the work dir, with cross-validation one such folder per fold: probe.{csv,md,tex},
        how well linear probes fitted on patches of training subjects predict T1, T2, PD, label and the contrasts to be
        synthesised in patches of test subjects, and the separation of classes; tsne.{png,pdf}; a run record. In its
        subfolder pixels/: pixel_probe.{csv,md,tex}, how well linear probes predict the labels of pixels of validation
        subjects from each level of each network. Settings of pretraining may be chosen with it, because it does not
        use test subjects.
Takes   a minute or two on a CPU with small images. No network is trained; every call overwrites the results. Stages
        without weights are reported and skipped.
Next    python finetune_segmentation.py --config FILE, or finetune_synthesis.py
"""

import logging

from utils.checks import InputError, counted
from utils.command_line import from_command_line
from utils.config.schema import channel_names
from utils.runs import child_seed, exit_code_of, open_run

log = logging.getLogger("mrccl")
IMAGES = {2: 500, 3: 200}  # largest number of slices or crops, of all training and of all test subjects
PATCHES = 20_000  # likewise
SHOWN = 1500  # largest number of patches for t-SNE and for the silhouette by label
PATCH_SIZE = 4  # default without a constrained stage; authors' code
DRAWS = 3  # of untrained layers
BATCH_SIZE = {2: 16, 3: 1}  # a crop takes more memory than a slice


def add_options(parser):
    parser.add_argument("--init", nargs="+", metavar="NAME", help="random, or stages (default: all that have weights)")
    parser.add_argument(
        "--folds", nargs="+", type=int, metavar="K", help="folds of the cross-validation (default: all)"
    )
    parser.add_argument(
        "--only",
        choices=("pixels", "patches"),
        help="pixels: the label probe on validation subjects, without test subjects (default: both)",
    )


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, needs=("slices", "pretraining"))
    for name in options.init or ():
        if name not in ("random", *config.pretraining.stages):
            known = ", ".join(["random", *config.pretraining.stages])
            raise InputError(f"--init {name}: neither random nor a stage of pretraining ({known})")
    if not (config.data.labels or config.synthesis):
        raise InputError(
            f"{options.config}: needs data.labels or synthesis, because without them no subjects are kept for testing"
        )
    from data.splits import chosen_folds

    works = config.work.splits_with("annotated" if config.data.labels else "pretrain_train")
    works = chosen_folds(works, options.folds)
    splits = [RepresentedSplit(config, work, options.init) for work in works]  # all mistakes are detected here
    for split in splits:
        for write in split.deeds(options.only):
            table, target = write()
            print_table(table)
            log.info("wrote %s", target)
    script = "segmentation" if config.finetuning or not config.synthesis else "synthesis"
    log.info("next: python finetune_%s.py %s", script, options.again)


def print_table(table):
    from evaluation.report.tables import to_markdown

    print(to_markdown(table))


def open_split(config, work):
    """Open the file that also holds test subjects.

    Returns:
        The `SliceStore`, the subjects of each part that it holds, and the hash of the split.
    """
    from data.splits import hash_of_split
    from data.store.store import SliceStore

    store = SliceStore(work.store("annotated") if config.data.labels else work.volumes)
    # volumes.h5 serves all folds; training and test subjects are listed beside it.
    told = store if config.data.labels else SliceStore(work.store("pretrain_train"))
    for file in (store, told):
        file.check_hash(config.hash_of_slices())
        file.check_origin(seed=config.seed, labels=list(config.data.labels))
    split = told.attributes["split"]
    subjects = {part: [s for s in members if s in store.subjects] for part, members in split.items()}
    return store, subjects, hash_of_split(split)


class RepresentedSplit:
    """One split: its slices, its pretrained networks, its folder in the report."""

    def __init__(self, config, work, inits=None):
        from data.layouts.subjects import find_subjects
        from evaluation.probes.patches import find_truth

        self.config, self.work, self.rank = config, work, config.network.rank
        self.name = work.split
        self.target = work.report / "representations" / self.name
        self.store, self.subjects, self.split_hash = open_split(config, work)
        self.targets = channel_names(config.data.contrasts, config.synthesis.targets) if config.synthesis else []
        self.contrasts = channel_names(config.data.contrasts, config.pretraining.contrasts)
        # What a network sees at once, as channels of the images: all contrasts, or one after the other.
        is_alone = config.pretraining.contrasts_as == "samples"
        self.inputs = [[channel] for channel in range(len(self.contrasts))] if is_alone else [slice(None)]
        levels = len(config.network.filters) - 1
        stages = [stage for stage in config.pretraining.stages.values() if stage.method == "constrained"]
        self.decoder_levels = (stages[0].decoder_levels if stages else None) or levels
        self.patch_size = config.patch_edge(stages[0]) if stages else PATCH_SIZE  # in pixels of the decoder's output
        self.edge = self.patch_size * 2 ** (levels - self.decoder_levels)  # in pixels of the image
        self.crops = config.crops.model_dump() if self.rank == 3 else None
        self.pretrained, self.missing = self.read_pretrained(inits)
        self.note, self.truth = f"{self.name}:" if self.name else "", None
        if config.data.simulated:
            chosen = [*self.subjects["train"], *self.subjects["test"]]
            self.note = f"Simulated scans. {self.note}".strip()
            self.truth = find_truth(find_subjects(config.data.wanted()), chosen)

    def seed(self, *names):
        return child_seed(self.config.seed, "representations", self.name, *names)

    def read_pretrained(self, wanted):
        """Read the weights of all stages that have weights, or of the requested ones.

        Returns:
            Initialisation to its `Pretrained`, None for random weights, and the stages without weights.

        Raises:
            InputError: Test subjects were used in pretraining, weights have another config, or requested weights are
            missing.
        """
        from data.identity import owners_of_images
        from models.weights import Pretrained

        tested = {
            subject: owners_of_images({subject: self.store.hashes.get(subject, {})})
            for subject in self.subjects["test"]
        }
        pretrained, missing, mistakes = {}, [], []
        for init in dict.fromkeys(wanted or ("random", *self.config.pretraining.stages)):
            path = self.work.stage_weights(init)
            if init == "random":
                pretrained[init] = None
            elif path.exists():
                pretrained[init] = found = Pretrained.read(path)
                mistakes += found.mistakes(init, self.config.hash_of_stage(init), self.split_hash, tested)
            elif wanted:
                mistakes.append(f"{path}: no such file; run constrained_contrastive_learning.py first")
            else:
                missing.append(init)
                log.warning("%s: no such file; '%s' is left out", path, init)
        if mistakes:
            raise InputError(mistakes)
        return pretrained, missing

    def deeds(self, only):
        """List the measurements: labels of pixels of validation subjects, and patches of test subjects."""
        has_validation = self.store.has_labels and bool(self.subjects.get("val"))
        if not has_validation and only == "pixels":
            raise InputError(f"{self.store.path}: the probe of pixels needs labels of training and validation subjects")
        if not has_validation and only is None:
            log.warning("no labelled validation subjects, so labels of pixels are not probed")
        return [self.write_pixels] * (has_validation and only != "patches") + [self.write] * (only != "pixels")

    def write_pixels(self):
        """Probe the labels of pixels of validation subjects, level by level, and write the table; returns it."""
        from evaluation.probes.pixels import PER_CLASS, network_scores, pixel_table, sample_pixels, without_network
        from evaluation.report.tables import write_table

        target, batch_size = self.target / "pixels", BATCH_SIZE[self.rank]
        with open_run(target, self.config.plain(), self.config.seed):
            parts = [
                sample_pixels(
                    self.store,
                    self.subjects[part],
                    self.contrasts,
                    most_images=IMAGES[self.rank],
                    per_class=number,
                    seed=self.seed("pixels", part),
                    crops=self.crops,
                )
                for part, number in PER_CLASS.items()
            ]
            rows = [*without_network(*parts)]
            for about, network in self.networks(self.build_levels):
                rows += network_scores(about, network, self.inputs, parts, batch_size)
            note = f"{self.note} Left out, without weights: {', '.join(self.missing)}." if self.missing else self.note
            table = pixel_table(rows, parts, self.config.data.labels, note.strip())
            write_table(table, target)
        return table, target

    def write(self):
        """Measure every representation, write table and figure; returns the table and the folder."""
        import numpy as np

        from evaluation.probes.figures import draw_embeddings
        from evaluation.probes.patches import TRUTH, draw_balanced
        from evaluation.probes.representations import embed, probe_scores, probe_table, silhouette_scores
        from evaluation.report.figures import save_figure
        from evaluation.report.tables import write_table

        target = self.target
        with open_run(target, self.config.plain(), self.config.seed):
            train, test = (self.sample(part) for part in ("train", "test"))
            labels = test.table["label"].to_numpy() if self.store.has_labels else np.zeros(len(test.table), int)
            drawn = draw_balanced(labels, SHOWN, self.seed("shown"))
            quantities = [*(TRUTH if self.truth else ()), *(f"contrast {name}" for name in self.targets)]
            rows, points = [], {}
            for about, *values in self.representations(train, test):
                scores = [*probe_scores(*values, train.table, test.table, quantities)]
                if (name := about["representation"]) in self.pretrained:
                    scores += silhouette_scores(values[1], test.table, drawn, self.seed("silhouette"))
                    points[name] = points[name] if name in points else embed(values[1][drawn], self.seed("t-SNE"))
                rows += [about | {"features": values[1].shape[1]} | score for score in scores]
            table = probe_table(rows, self.caption(train.table, test.table))
            write_table(table, target)
            shown = test.table.iloc[drawn]
            whose = counted(shown["subject"].nunique(), "test subject")
            title = f"{self.note} t-SNE of {len(shown)} patches of {whose}".strip()
            title += ", rare labels favoured" if self.store.has_labels else ""
            save_figure(draw_embeddings(points, shown, list(self.config.data.labels), title), target, "tsne")
        return table, target

    def sample(self, part):
        """Draw the patches of the training or of the test subjects."""
        from evaluation.probes.patches import Contents, Drawing, sample_patches
        from training.patches import assign_patch_classes

        drawing = Drawing(IMAGES[self.rank], PATCHES, self.seed(part), self.crops)
        contents = Contents(assign_patch_classes, self.truth, self.targets)
        return sample_patches(self.store, self.subjects[part], self.contrasts, self.edge, drawing, contents)

    def representations(self, train, test):
        """Yield a description of each representation, and its values on training and test patches, `(n, F)`.

        Those without a network come first: pretraining adds what exceeds them.
        """
        import numpy as np

        from evaluation.probes.patches import patch_means

        parts, plain = (train, test), {"draw": 0, "pretrained": "-"}
        intensity = [part.take(patch_means(part.images, self.edge, self.rank)) for part in parts]
        places = [np.hstack([part.positions, part.positions**2]) for part in parts]
        yield {"representation": "intensity"} | plain, *intensity
        yield {"representation": "intensity + position"} | plain, *map(np.hstack, zip(intensity, places, strict=True))
        for about, network in self.networks(self.build):
            yield about, *(np.hstack([part.take(maps) for maps in self.feature_maps(network, part)]) for part in parts)

    def feature_maps(self, network, part):
        """Yield the representations of all patches for each input that the network sees, `(S, P, F)`."""
        from evaluation.probes.representations import represent

        for channels in self.inputs:
            yield represent(network, part.images[..., channels], self.patch_size, BATCH_SIZE[self.rank])

    def networks(self, build):
        """Yield a description of each network, and the network, like `filled_networks`."""
        from evaluation.probes.pretrained import filled_networks

        return filled_networks(self.pretrained, build, DRAWS, self.contrasts if len(self.inputs) == 1 else None)

    def build(self, draw, decoder_levels=None):
        """Build the network up to its representations, with the initial weights of a repeat of step 4."""
        from models.unet import build_unet

        return build_unet(
            (*self.config.image_size(), len(self.contrasts) // len(self.inputs)),
            rank=self.rank,
            filters=self.config.network.filters,
            decoder_levels=decoder_levels or self.decoder_levels,
            head=None,
            seed=child_seed(self.config.seed, "weights", draw),
        )

    def build_levels(self, draw):
        """Build the network with its full decoder, as in step 4, to be probed at every level."""
        from models.unet import feature_levels

        return feature_levels(self.build(draw, len(self.config.network.filters) - 1))

    def caption(self, train, test):
        """Write the caption of the table."""
        labels = ["other foreground", *self.config.data.labels]
        levels = len(self.config.network.filters) - 1
        together = ", one by one, their features side by side" if len(self.inputs) > 1 else ""
        compared = "labelled patches only" if len(labels) > 2 else "labelled and other patches"
        shape = " × ".join([str(self.edge)] * self.rank) + (" pixels" if self.rank == 2 else " voxels")
        sentences = [
            self.note,
            f"Linear probes of patch representations, fitted on {len(train)} patches of "
            f"{counted(train['subject'].nunique(), 'training subject')}, scored on {len(test)} patches of "
            f"{counted(test['subject'].nunique(), 'test subject')}, which no stage has seen. "
            f"A patch has {shape}, foreground in every one. Its "
            f"representation is the mean over it of the features of decoder level {self.decoder_levels} of {levels} "
            f"(input: {', '.join(self.contrasts)}{together}); intensity: of the input itself; position: row, column, "
            "slice and their squares.",
            "R²: ridge regression of the true T1 [ms], T2 [ms] and PD [percent], no logarithms." if self.truth else "",
            f"R² contrast: ridge regression of what is to be synthesised ({', '.join(self.targets)}; 0 to 1)."
            if self.targets
            else "",
            f"Balanced accuracy: logistic regression of the label ({', '.join(labels)}; chance {1 / len(labels):.2f})."
            if self.store.has_labels
            else "",
            "Over all test patches; in round brackets mean ± standard deviation over test subjects.",
            f"Where layers are not pretrained: means over {DRAWS} draws of them, with the smallest and the largest.",
            "Silhouette: cosine distance, -1 to 1, every class counts the same; "
            + (f"of labels ({compared}, subjects together) and " if self.store.has_labels else "")
            + "of constraint classes (within each subject, mean ± standard deviation over subjects).",
            f"Left out, without weights: {', '.join(self.missing)}." if self.missing else "",
        ]
        return " ".join(sentence for sentence in sentences if sentence)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
