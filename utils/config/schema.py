"""The complete config: all sections, checks across sections, and the hashes that identify results."""

import difflib
import hashlib
import json

from pydantic import Field, NonNegativeInt, model_validator

from utils.config.data import DataSection
from utils.config.evaluation import EvaluationSection
from utils.config.finetuning import FinetuningSection, SynthesisSection
from utils.config.patch_sizes import mistakes_of_patches, patch_edge
from utils.config.pretraining import PretrainingSection, mistakes_of_blocks
from utils.config.sections import (
    ConstraintMapSection,
    CropSection,
    Location,
    Name,
    NetworkSection,
    Section,
    SliceSection,
    drop_added_defaults,
)
from utils.config.trials import drop_grid_keys, mistakes_of_trials
from utils.work_dir import WorkDir


class Config(Section):
    """The config of one dataset, from scans to tables."""

    name: Name = Field(description="name of the dataset, as in the file name")
    seed: NonNegativeInt = Field(0, description="seed of all random numbers: folds, clustering, weights, anchors, ...")
    work_dir: Location = Field(description="folder for all output; --work-dir overrides it")
    paper: Name | None = Field(None, description="entry of papers/expected.yaml to compare with")
    data: DataSection = Field(description="the scans")
    constraint_maps: ConstraintMapSection | None = Field(None, description="step 1")
    slices: SliceSection | None = Field(None, description="step 2")
    network: NetworkSection = Field(NetworkSection(), description="steps 3 and 4")
    crops: CropSection | None = Field(None, description="steps 3 and 4, for networks of rank 3 and for synthesis")
    pretraining: PretrainingSection | None = Field(None, description="step 3")
    finetuning: FinetuningSection | None = Field(None, description="step 4, segmentation")
    synthesis: SynthesisSection | None = Field(None, description="step 4, contrast synthesis")
    evaluation: EvaluationSection = Field(EvaluationSection(), description="steps 4 and 5")

    @model_validator(mode="after")
    def check_sections(self):
        """Raise ValueError if sections contradict one another; called by pydantic."""
        mistakes = [*self._mistakes_of_contrasts(), *self._mistakes_of_finetuning(), *self._mistakes_of_spaces()]
        mistakes += [*self._mistakes_of_synthesis(), *self._mistakes_of_rank(), *self._mistakes_of_augmentation()]
        mistakes += self.evaluation.mistakes(self.data.labels)
        if self.slices:
            mistakes += [*self._mistakes_of_slices(), *mistakes_of_patches(self)]
            stages = self.pretraining.stages if self.pretraining else {}
            mistakes += mistakes_of_blocks(stages, self.slices.pixel_size, self.image_size())
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    @model_validator(mode="after")
    def _trials_agree(self):
        if mistakes := list(mistakes_of_trials(self)):
            raise ValueError("\n".join(mistakes))
        return self

    def _mistakes_of_contrasts(self):
        channels = channel_names(self.data.contrasts)
        for name in sorted({name for name in channels if channels.count(name) > 1}):
            yield f"data.contrasts: '{name}' is a contrast, and a volume of a series too; give one of them another name"
        known = {*channel_names(self.data.contrasts), *self.data.contrasts}
        used = {_space_key(space): names for space, names in self.spaces().items()}
        used["pretraining.contrasts"] = self.pretraining.contrasts if self.pretraining else ()
        if self.finetuning:
            used |= {f"finetuning.contrasts.{name}": names for name, names in self.finetuning.contrasts.items()}
        if self.synthesis:
            used |= {"synthesis.inputs": self.synthesis.inputs, "synthesis.targets": self.synthesis.targets}
        for where, names in used.items():
            channels = channel_names(self.data.contrasts, names)
            for name in sorted({name for name in channels if channels.count(name) > 1}):
                yield f"{where}: '{name}' is named twice; name each contrast once"
            for name in names:
                if name not in known:
                    listed = ", ".join(sorted(known))
                    yield f"{where}: '{name}' is not one of data.contrasts ({listed}){_hint(name, known)}"

    def _mistakes_of_finetuning(self):
        if not self.finetuning:
            return
        yield from self._mistakes_of_grid("finetuning", self.finetuning)
        yield from self._unknown_inits("finetuning.chosen", self.finetuning.chosen)
        if self.network.rank == 3:
            yield "finetuning: segments slice by slice; set network.rank to 2, or remove the section"
        if not self.data.labels:
            yield "finetuning: needs data.labels, and data.label where the layout needs it"
        for name in self.finetuning.loss.class_weights or ():
            if name not in self.data.labels and name != "background":
                listed = ", ".join(self.data.labels)
                yield f"finetuning.loss.class_weights: '{name}' is not one of data.labels ({listed})"

    def _mistakes_of_grid(self, section, grid):
        yield from self._unknown_inits(f"{section}.inits", grid.inits)
        levels = len(self.network.filters) - 1
        if grid.fresh_levels > levels:
            yield f"{section}.fresh_levels: {grid.fresh_levels}, but network.filters makes {levels} decoder levels"

    def _unknown_inits(self, where, names):
        inits = {"random", *(self.pretraining.stages if self.pretraining else ())}
        for name in names:
            if name not in inits:
                listed = ", ".join(sorted(inits))
                yield f"{where}: '{name}' is neither random nor a stage of pretraining ({listed})"

    def _mistakes_of_synthesis(self):
        if not self.synthesis:
            return
        yield from self._mistakes_of_grid("synthesis", self.synthesis)
        if not self.slices:
            yield "synthesis: needs the section 'slices:'"
        channels = {
            key: channel_names(self.data.contrasts, getattr(self.synthesis, key)) for key in ("inputs", "targets")
        }
        for name in sorted(set(channels["inputs"]) & set(channels["targets"])):
            yield f"synthesis.targets: '{name}' is among the inputs too; a contrast can be only one of them"

    def _mistakes_of_augmentation(self):
        why = "slices.pixel_size is null" if self.data.voxel_size_known else "data.voxel_size_known is false"
        for name, labels in (("finetuning", self.data.labels), ("synthesis", ())):
            if section := getattr(self, name):
                where = f"{name}.augmentation"
                yield from section.augmentation.mistakes(where, self.network.rank, self.pixel_mm(), why, labels)

    def _mistakes_of_rank(self):
        rank, crops = self.network.rank, self.crops
        if not crops:
            if rank == 3 or self.synthesis:
                what = "network.rank: 3" if rank == 3 else "synthesis"
                yield f"{what}: needs the section 'crops:', such as crops: {{size: {[64] * rank}}}"
            return
        if len(crops.size) != rank:
            yield f"crops.size: {crops.size} has {len(crops.size)} numbers, but network.rank is {rank}"
        elif self.slices and any(n > m for n, m in zip(crops.size, self.slices.image_size, strict=False)):
            image = list(self.slices.image_size)
            yield f"crops.size: {crops.size} is larger than slices.image_size {image}; use smaller crops"
        factor = 2 ** (len(self.network.filters) - 1)
        if any(size % factor for size in crops.size):
            levels = len(self.network.filters)
            yield f"crops.size: {crops.size} must be multiples of {factor}, because network.filters has {levels} levels"
        if rank == 3 and self.pretraining:
            if self.pretraining.contrasts_as == "samples":
                yield "pretraining.contrasts_as: samples is for slices; with network.rank 3 take channels"
            for name, stage in self.pretraining.stages.items():
                if stage.method == "global" and stage.n_partitions:
                    yield f"pretraining.stages.{name}.n_partitions: is for slices; remove it"

    def _mistakes_of_spaces(self):
        spaces = self.spaces()
        for space, names in spaces.items():
            if len(channel_names(self.data.contrasts, names)) < 2:
                yield f"{_space_key(space)}: one channel; a contrast space needs at least two"
        if "qc" in spaces:
            yield "constraint_maps.spaces.qc: constraint_maps/qc/ holds pictures; give the space another name"
        for name, stage in self.pretraining.stages.items() if self.pretraining else ():
            if stage.method == "constrained" and not spaces:
                cure = "add it, or remove the stage"
                yield f"pretraining.stages.{name}: a constrained stage needs the section 'constraint_maps:'; {cure}"
            elif stage.method == "constrained" and stage.space not in spaces:
                known = ", ".join(filter(None, spaces)) or "none"
                yield f"pretraining.stages.{name}.space: '{stage.space}' is not one of constraint_maps.spaces ({known})"

    def _mistakes_of_slices(self):
        is_set = self.constraint_maps and "percentiles" in self.slices.model_fields_set
        if is_set and self.slices.percentiles != self.constraint_maps.percentiles:
            yield "slices.percentiles: constraint_maps.percentiles holds for both; delete this one"
        factor = 2 ** (len(self.network.filters) - 1)
        if self.network.rank == 2 and any(size % factor for size in self.slices.image_size):
            yield (
                f"slices.image_size: {list(self.slices.image_size)} must be multiples of {factor}, because "
                f"network.filters has {len(self.network.filters)} levels"
            )

    def plain(self):
        """Return the config as a dictionary of plain YAML types with defaults; it loads as the same config."""
        plain = self.model_dump(mode="json")
        if self.constraint_maps and self.slices:
            del plain["slices"]["percentiles"]  # those of constraint_maps apply to both
        return plain

    @property
    def work(self):
        """Where everything below the work dir lies."""
        return WorkDir(self.work_dir)

    def of_annotated(self):
        """Return keyword arguments of `data.annotated.open_annotated`: how the annotated subjects were packed."""
        return {"wanted": self.data.wanted(), "config_hash": self.hash_of_slices(), "seed": self.seed}

    def image_size(self):
        """Return the image size in pretraining: whole slices `(H, W)`, or crops `(h, w, d)`."""
        return self.crops.size if self.network.rank == 3 and self.crops else self.slices.image_size

    def pixel_mm(self):
        """Return the edge of a pixel of the slices, mm; None if it is unknown or differs between subjects."""
        return self.slices.pixel_size if self.slices and self.data.voxel_size_known else None

    def patch_edge(self, stage):
        """Return the edge of the patches of a constrained stage, in pixels of the decoder's output."""
        return patch_edge(stage, len(self.network.filters) - 1, self.image_size(), self.slices.pixel_size)

    def percentiles(self):
        """Return the percentiles of a contrast's foreground that are mapped to 0 and 1."""
        return (self.constraint_maps or self.slices).percentiles

    def spaces(self):
        """Return the contrast spaces with constraint maps: name (None: `constraint_maps.contrasts`) -> contrasts."""
        section = self.constraint_maps
        return {} if section is None else {None: section.contrasts, **section.spaces}

    # Hashes of the values that affect the result of each step, so that results of different configs are never mixed.
    # They exclude names, locations, the seed (recorded beside the hash) and the lists of the grid.

    def _plain_for_hash(self):
        plain = self.plain()
        drop_added_defaults(self, plain)
        plain["network"].pop("remat", None)  # affects only memory and time
        plain["evaluation"].pop("lesions", None)  # adds scores and changes none
        return plain

    def reading(self):
        """Return the settings for reading scans that differ from the defaults, for hashes."""
        data = self._plain_for_hash()["data"]
        return {key: data[key] for key in ("layout", "resample_to", "bias_correction") if key in data}

    def hash_of_maps(self):
        """Hash the settings that affect a constraint map."""
        plain = self._plain_for_hash()
        data = plain["data"]
        parts = [data["contrasts"], data["mask"], plain["constraint_maps"]]
        return fingerprint(*parts, *([self.reading()] if self.reading() else []))

    def hash_of_slices(self):
        """Hash the settings that affect the HDF5 files."""
        plain = self._plain_for_hash()
        data = {key: plain["data"][key] for key in ("label", "labels", "ignored_label_values", "splits")}
        return fingerprint(self.hash_of_maps(), data, plain["slices"])

    def hash_of_stage(self, name):
        """Hash the settings that affect the weights of a pretraining stage and of the stages it starts from."""
        plain = self._plain_for_hash()
        stage = plain["pretraining"]["stages"].get(name)
        if stage is None:  # a warm start from a file outside this config
            return fingerprint(name)
        before = self.hash_of_stage(stage["warm_start"]) if stage["warm_start"] else None
        names = plain["pretraining"]["contrasts"]
        shown = {"one by one": names} if self.pretraining.contrasts_as == "samples" else names
        crops = [plain["crops"]] if self.network.rank == 3 else []
        return fingerprint(self.hash_of_slices(), plain["network"], shown, stage, before, *crops)

    def hash_of_cell(self, contrasts, init, trial=None):
        """Hash the settings that affect the cells of one input set and initialisation, or of one trial."""
        settings = self.finetuning.settings_of(init, trial)
        plain = self.model_copy(update={"finetuning": settings})._plain_for_hash()
        finetuning = drop_grid_keys(plain["finetuning"])
        start = None if init == "random" else self.hash_of_stage(init)
        names = plain["finetuning"]["contrasts"][contrasts]
        return fingerprint(self.hash_of_slices(), plain["network"], finetuning, names, start, plain["evaluation"])

    def hash_of_scoring(self):
        """Hash the settings that affect the scores of label maps from outside this suite."""
        plain = self._plain_for_hash()
        data = {key: plain["data"][key] for key in ("label", "labels", "ignored_label_values", "splits")}
        return fingerprint(data, self.reading(), plain["evaluation"])

    def hash_of_synthesis(self, init):
        """Hash the settings that affect the synthesis cells of one initialisation."""
        plain = self._plain_for_hash()
        keys = ("inputs", "targets", "loss", "augmentation", "training", "evaluate_every", "fresh_levels", "overlap")
        synthesis = {key: plain["synthesis"][key] for key in keys if key in plain["synthesis"]}
        start = None if init == "random" else self.hash_of_stage(init)
        return fingerprint(self.hash_of_slices(), plain["network"], plain["crops"], synthesis, start)


def _space_key(space):
    return f"constraint_maps.spaces.{space}" if space else "constraint_maps.contrasts"


def channel_names(contrasts, names=None):
    """Expand contrast names to channel names: a 4D series of n volumes becomes `<name>_1` ... `<name>_n`.

    Args:
        contrasts: `data.contrasts` of the config; a value is a path, or has `volumes` (attribute or key).
        names: Names to expand; all by default.

    Returns:
        List of channel names in the order of `names`; channel names are kept.
    """
    channels = []
    for name in contrasts if names is None else names:
        source = contrasts.get(name)
        volumes = source.get("volumes") if isinstance(source, dict) else getattr(source, "volumes", None)
        channels += [f"{name}_{number}" for number in range(1, volumes + 1)] if volumes else [name]
    return channels


def _hint(word, known):
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def fingerprint(*parts):
    """Hash plain values, to distinguish results of different configs.

    Args:
        *parts: Dictionaries, lists, numbers, text.

    Returns:
        12 hexadecimal digits, the same on every machine and in every run.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
