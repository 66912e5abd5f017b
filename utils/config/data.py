"""The section `data` of a config: where the scans are, and the names of contrasts and labels."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from utils.config.sections import ADDED, ContrastFile, Location, Name, PathPattern, Section, Splits
from utils.label_colours import Colour, Label, legend_of, numbered

MOST_CLASSES = 255
Layout = Literal["pattern", "brats", "msd", "nnunet", "bids", "chaos", "renal"]
FINDS_LABELS = ("brats", "msd", "nnunet", "chaos", "renal")  # layouts that define where label maps are


def _kind_of_label(value):
    return "<name>" if isinstance(value, str) and re.search("[A-Za-z]", value) else "<number>"


def _named_as_on_disk(value):
    """Read `[t1, t2]` as `{t1: t1, t2: t2}`."""
    is_names = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    return {name: name for name in value} if is_names else value


def _lists_of_values(value):
    """Read `[liver]` and `{liver: liver}` as `{liver: [liver]}`."""
    value = _named_as_on_disk(value)
    is_dict = isinstance(value, dict)
    return {name: [of] if isinstance(of, str) else of for name, of in value.items()} if is_dict else value


Contrasts = Annotated[
    dict[Name, ContrastFile],
    Field(min_length=1),
    BeforeValidator(_named_as_on_disk, json_schema_input_type=dict[Name, ContrastFile] | list[Name]),
]
LabelValue = Annotated[
    Annotated[int, Tag("<number>")] | Annotated[PathPattern, Tag("<name>")], Discriminator(_kind_of_label)
]
Labels = Annotated[
    dict[Name, list[LabelValue]],
    BeforeValidator(
        _lists_of_values, json_schema_input_type=dict[Name, list[LabelValue] | PathPattern] | list[PathPattern]
    ),
]


def file_pattern(entry: Any) -> str:
    """Return the file pattern of one contrast: a plain pattern, or `{"file": pattern, "volumes": n}`."""
    return entry if isinstance(entry, str) else dict(entry)["file"]


@dataclass(frozen=True)
class Wanted:
    """What to look for in a folder, and how to read it.

    Attributes:
        root: Folder of the dataset.
        contrasts: Contrast name -> its name in the layout (pattern: path below `root` with `{subject}`), or for a 4D
            series `{"file": that name, "volumes": n}`.
        label: Label map, as in `data.label` of the config; None without labels, or if the layout defines it.
        mask: Path of the foreground mask below `root` with `{subject}` (bids: a filter), or None. A missing mask
            is an error; a subject without a label map counts as unlabelled.
        layout: How the files are arranged.
        labels: Class name -> values of the label map, or their names in the layout; if empty, no labels are looked for,
            except by `label` in layout pattern.
        ignored: Values, or their names, that mean background.
        test_images: msd, nnunet: include the unlabelled subjects of imagesTs.
        resample_to: Contrast to whose grid all files are resampled when they are read, or None.
        bias_correction: Contrasts that are read with N4 bias correction.
        empty_labels: With `"refuse"`, a label map must not consist of background alone.
    """

    root: Path
    contrasts: Mapping[str, Any]
    label: str | None = None
    mask: str | None = None
    layout: str = "pattern"
    labels: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    ignored: Sequence[int | str] = ()
    test_images: bool = False
    resample_to: str | None = None
    bias_correction: Sequence[str] = ()
    empty_labels: str = "warn"

    @property
    def entries(self) -> dict[str, str]:
        """Contrast -> its name or pattern in the layout."""
        return {name: file_pattern(entry) for name, entry in self.contrasts.items()}

    def label_names(self) -> list[str]:
        """Return the names (not numbers) by which the config refers to values of the label maps."""
        values = [value for members in self.labels.values() for value in members]
        return [value for value in [*values, *self.ignored] if isinstance(value, str)]


class DataSection(Section):
    """Where the scans are and how they are named; docs/data.md has an example of each layout."""

    root: Location = Field(description="folder of the dataset")
    layout: Layout = Field(
        "pattern", json_schema_extra=ADDED, description="how the files are arranged; pattern: by the paths given here"
    )
    contrasts: Contrasts = Field(
        description="contrast name: path with {subject}, or in other layouts the name of the contrast there"
    )
    label: PathPattern | None = Field(
        None,
        description="path of the label map, with {subject}; bids: its filter; chaos, renal: the contrast it belongs to",
    )
    labels: Labels = Field(
        default_factory=dict, description="class name: its values in the label map, or their names in the layout"
    )
    ignored_label_values: list[LabelValue] = Field(
        default_factory=list, description="label values that mean background"
    )
    label_colours: dict[Name, Colour] = Field(
        {},
        json_schema_extra=ADDED,
        description="class name: its colour, in quotes ('#E69F00'), in figures, page and the tables for viewers; "
        "the others get colours that are safe for colour-blind readers",
    )
    empty_labels: Literal["warn", "allow", "refuse"] = Field(
        "warn",
        json_schema_extra=ADDED,
        description="label maps without labelled voxels; unless refused, used in training and scored as background",
    )
    mask: PathPattern | None = Field(
        None, description="path of a foreground mask, with {subject}; null: segmented from the images"
    )
    test_images: bool = Field(
        False, json_schema_extra=ADDED, description="msd, nnunet: also read the unlabelled subjects in imagesTs"
    )
    resample_to: Name | None = Field(
        None,
        json_schema_extra=ADDED,
        description="contrast to whose grid the others are resampled; null: differing grids are refused",
    )
    bias_correction: list[Name] = Field(
        [],
        json_schema_extra=ADDED,
        description="contrasts to which N4 bias correction is applied, which takes seconds each",
    )
    voxel_size_known: bool = Field(True, description="false if the affine is nominal: no results in mm or mL")
    splits: Splits = Field(description="file below root, sizes of the sets, lists of names, or folds")
    resident: Literal["auto", "always", "never"] = Field(
        "auto", description="keep all slices on the device during training; never: read each batch; auto: if they fit"
    )
    simulated: bool = Field(False, description="true for simulated scans; every table and figure states it")

    def wanted(self) -> Wanted:
        """Return what `data.layouts.subjects.find_subjects` looks for."""
        same = {name: getattr(self, name) for name in Wanted.__dataclass_fields__ if name != "ignored"}
        return Wanted(**same, ignored=self.ignored_label_values)

    def legend(self) -> list[Label]:
        """The classes as label maps number them, with their colours."""
        return legend_of(numbered(self.labels), self.label_colours)

    @model_validator(mode="after")
    def _colours_are_of_labels(self):
        for name, colour in self.label_colours.items():
            if name not in self.labels:
                raise ValueError(f"label_colours: '{name}' is not one of labels ({', '.join(self.labels) or 'none'})")
            if same := [other for other in self.label_colours if self.label_colours[other] == colour and other != name]:
                raise ValueError(f"label_colours: {name} and {same[0]} are both {colour}; give them different colours")
        return self

    @model_validator(mode="after")
    def _labels_are_sound(self):
        values = [value for members in self.labels.values() for value in members] + self.ignored_label_values
        repeated = sorted({value for value in values if values.count(value) > 1}, key=str)
        if repeated:
            raise ValueError(f"labels: value {repeated[0]} is named twice; a voxel has one class")
        if 0 in values or "background" in self.labels or not all(self.labels.values()):
            raise ValueError("labels: every class needs values other than 0, which is background and not named")
        if len(self.labels) > MOST_CLASSES:
            raise ValueError(f"labels: {len(self.labels)} classes; labels are stored in 8 bits, so at most 255")
        return self

    @model_validator(mode="after")
    def _layout_has_what_it_needs(self):
        finds_labels = self.layout in FINDS_LABELS
        if finds_labels and self.label and (self.layout not in ("chaos", "renal") or not self.labels):
            raise ValueError(f"label: layout {self.layout} knows where labels lie; remove it, labels names the classes")
        if not finds_labels and bool(self.label) != bool(self.labels):
            raise ValueError("label and labels go together: give both or neither")
        named = [value for values in (*self.labels.values(), self.ignored_label_values) for value in values]
        for name in named if self.layout == "pattern" else ():
            if isinstance(name, str):
                raise ValueError(f"labels: '{name}' is a name; layout pattern knows numbers only, such as [1]")
        if self.test_images and self.layout not in ("msd", "nnunet"):
            raise ValueError(f"test_images: is for the layouts msd and nnunet, not for {self.layout}; remove it")
        known = ", ".join(self.contrasts)
        for name in self.bias_correction if self.resample_to is None else [self.resample_to, *self.bias_correction]:
            if name not in self.contrasts:
                key = "resample_to" if name == self.resample_to else "bias_correction"
                raise ValueError(f"{key}: '{name}' is not one of contrasts ({known})")
        return self
