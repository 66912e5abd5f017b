"""A whole config: its sections together, what they say against one another, and the hashes that tell results apart."""

import difflib
import hashlib
import json
import math
from pathlib import Path

from pydantic import Field, NonNegativeInt, model_validator

from utils.sections import (
    ADDED,
    ConstraintMapSection,
    DataSection,
    EvaluationSection,
    FinetuningSection,
    Name,
    NetworkSection,
    PretrainingSection,
    Section,
    SliceSection,
)


class Config(Section):
    """One dataset, from scans to tables."""

    name: Name = Field(description="name of the dataset, the same as the file's")
    seed: NonNegativeInt = Field(0, description="the only source of chance: folds, clustering, weights, anchors, ...")
    work_dir: Path = Field(description="folder for everything that is written; --work-dir replaces it")
    paper: Name | None = Field(None, description="entry of papers/expected.yaml whose numbers stand beside ours")
    data: DataSection = Field(description="the scans")
    constraint_maps: ConstraintMapSection | None = Field(None, description="step 1")
    slices: SliceSection | None = Field(None, description="step 2")
    network: NetworkSection = Field(NetworkSection(), description="steps 3 and 4")
    pretraining: PretrainingSection | None = Field(None, description="step 3")
    finetuning: FinetuningSection | None = Field(None, description="step 4")
    evaluation: EvaluationSection = Field(EvaluationSection(), description="steps 4 and 5")

    @model_validator(mode="after")
    def _sections_agree(self):
        mistakes = [*self._mistakes_of_contrasts(), *self._mistakes_of_finetuning(), *self._mistakes_of_spaces()]
        mistakes += [
            f"evaluation.regions.{region}: '{name}' is not one of data.labels ({', '.join(self.data.labels)})"
            for region, members in self.evaluation.regions.items()
            for name in members
            if name not in self.data.labels
        ]
        if self.slices:
            mistakes += [*self._mistakes_of_slices(), *self._patches_that_do_not_fit()]
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    def _mistakes_of_contrasts(self):
        known = {*channel_names(self.data.contrasts), *self.data.contrasts}
        used = {_space_key(space): names for space, names in self.spaces().items()}
        used["pretraining.contrasts"] = self.pretraining.contrasts if self.pretraining else ()
        if self.finetuning:
            used |= {f"finetuning.contrasts.{name}": names for name, names in self.finetuning.contrasts.items()}
        for where, names in used.items():
            for name in names:
                if name not in known:
                    listed = ", ".join(sorted(known))
                    yield f"{where}: '{name}' is not one of data.contrasts ({listed}){_hint(name, known)}"

    def _mistakes_of_finetuning(self):
        if not self.finetuning:
            return
        inits = {"random", *(self.pretraining.stages if self.pretraining else ())}
        for name in self.finetuning.inits:
            if name not in inits:
                listed = ", ".join(sorted(inits))
                yield f"finetuning.inits: '{name}' is neither random nor a stage of pretraining ({listed})"
        if not self.data.labels:
            yield "finetuning: needs data.label and data.labels"
        for name in self.finetuning.loss.class_weights or ():
            if name not in self.data.labels and name != "background":
                listed = ", ".join(self.data.labels)
                yield f"finetuning.loss.class_weights: '{name}' is not one of data.labels ({listed})"

    def _mistakes_of_spaces(self):
        spaces = self.spaces()
        for space, names in spaces.items():
            if len(channel_names(self.data.contrasts, names)) < 2:
                yield f"{_space_key(space)}: one channel; a contrast space needs at least two"
        if "qc" in spaces:
            yield "constraint_maps.spaces.qc: constraint_maps/qc/ holds pictures; give the space another name"
        for name, stage in self.pretraining.stages.items() if self.pretraining else ():
            if stage.method == "constrained" and not spaces:
                cure = "add it, or take the stage out"
                yield f"pretraining.stages.{name}: a constrained stage needs the section 'constraint_maps:'; {cure}"
            elif stage.method == "constrained" and stage.space not in spaces:
                known = ", ".join(filter(None, spaces)) or "none"
                yield f"pretraining.stages.{name}.space: '{stage.space}' is not one of constraint_maps.spaces ({known})"

    def _mistakes_of_slices(self):
        if self.constraint_maps and "percentiles" in self.slices.model_fields_set:
            yield "slices.percentiles: constraint_maps.percentiles holds for both; delete this one"
        factor = 2 ** (len(self.network.filters) - 1)
        if any(size % factor for size in self.slices.image_size):
            yield (
                f"slices.image_size: {list(self.slices.image_size)} must be multiples of {factor}, because "
                f"network.filters has {len(self.network.filters)} levels"
            )

    def _patches_that_do_not_fit(self):
        levels = len(self.network.filters) - 1
        for name, stage in self.pretraining.stages.items() if self.pretraining else ():
            if stage.method not in ("local", "constrained"):
                continue
            where, built = f"pretraining.stages.{name}", stage.decoder_levels or levels
            if built > levels:
                yield f"{where}.decoder_levels: {built}, but network.filters makes {levels} decoder levels"
                continue
            factor, sizes = 2 ** (levels - built), list(self.slices.image_size)
            coarser = f"pixels of a decoder output that is {factor} times coarser than the image"
            if stage.method == "constrained" and any(size % (stage.patch_size * factor) for size in sizes):
                yield f"{where}.patch_size: {stage.patch_size} {coarser} do not divide {sizes}"
            if stage.method == "local" and math.prod(size // factor // stage.region_size for size in sizes) < 2:
                yield f"{where}.region_size: {stage.region_size} {coarser}; fewer than two regions fit into {sizes}"

    def plain(self):
        """Return the config as a dictionary of plain YAML types, defaults filled in."""
        return self.model_dump(mode="json")

    def percentiles(self):
        """Percentiles of a contrast's foreground that become 0 and 1."""
        return (self.constraint_maps or self.slices).percentiles

    def spaces(self):
        """Contrast spaces that have constraint maps: name (None: `constraint_maps.contrasts`) to contrasts."""
        section = self.constraint_maps
        return {} if section is None else {None: section.contrasts, **section.spaces}

    # Hashes of what shapes the result of each step, so that results of different configs never mix. Left out is what
    # does not: names, places, the seed (recorded beside the hash) and the lists of the grid.

    def _plain_for_hash(self):
        plain = self.plain()
        _drop_added_defaults(self, plain)
        return plain

    def hash_of_maps(self):
        """Hash of what shapes a constraint map."""
        plain = self._plain_for_hash()
        return fingerprint(plain["data"]["contrasts"], plain["data"]["mask"], plain["constraint_maps"])

    def hash_of_slices(self):
        """Hash of what shapes the HDF5 files."""
        plain = self._plain_for_hash()
        data = {key: plain["data"][key] for key in ("label", "labels", "ignored_label_values", "splits")}
        return fingerprint(self.hash_of_maps(), data, plain["slices"])

    def hash_of_stage(self, name):
        """Hash of what shapes the weights of a pretraining stage, the stages it starts from included."""
        plain = self._plain_for_hash()
        stage = plain["pretraining"]["stages"].get(name)
        if stage is None:  # a warm start from a file outside this config
            return fingerprint(name)
        before = self.hash_of_stage(stage["warm_start"]) if stage["warm_start"] else None
        names = plain["pretraining"]["contrasts"]
        shown = {"one by one": names} if self.pretraining.contrasts_as == "samples" else names
        return fingerprint(self.hash_of_slices(), plain["network"], shown, stage, before)

    def hash_of_cell(self, contrasts, init):
        """Hash of what shapes the cells of one input set and one initialisation."""
        plain = self._plain_for_hash()
        finetuning = {key: plain["finetuning"][key] for key in ("loss", "augmentation", "training", "evaluate_every")}
        start = None if init == "random" else self.hash_of_stage(init)
        names = plain["finetuning"]["contrasts"][contrasts]
        return fingerprint(self.hash_of_slices(), plain["network"], finetuning, names, start, plain["evaluation"])


def _drop_added_defaults(section, plain):
    """Remove the keys that came later and have their default, from a section and all sections inside it."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if field.json_schema_extra == ADDED and value == field.default:
            del plain[name]
            continue
        parts, plain_parts = (v if isinstance(value, dict) else {"": v} for v in (value, plain[name]))
        for key, part in parts.items():
            if isinstance(part, Section):
                _drop_added_defaults(part, plain_parts[key])


def _space_key(space):
    return f"constraint_maps.spaces.{space}" if space else "constraint_maps.contrasts"


def channel_names(contrasts, names=None):
    """Expand contrast names to channel names: a 4D series of n volumes becomes `<name>_1` ... `<name>_n`.

    Args:
        contrasts: `data.contrasts` of the config; a value is a path, or has `volumes` (attribute or key).
        names: Names to expand; default all.

    Returns:
        List of channel names in the order of `names`; a name that is already a channel stays.
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
    """Hash plain values, to tell results of different configs apart.

    Args:
        *parts: Dictionaries, lists, numbers, text.

    Returns:
        12 hexadecimal digits, stable over machines and runs.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
