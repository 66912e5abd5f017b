"""The README of an exported model: its task, training data, scores, usage and intended use.

It never contains subject names or file paths, because model cards are shared.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from evaluation.scores.measures import (
    DICE,
    FALSE_LESIONS,
    HD95,
    LESION_F1,
    MASK,
    MEASURES,
    SURFACE_DICE,
    SYNTHESIS_MEASURES,
)
from utils.checks import counted
from utils.model_description import EncoderDescription, Preprocessing, SegmentationModel, SynthesisModel

COLUMNS = {measure.key: measure.axis for measure in (DICE, SURFACE_DICE, HD95, LESION_F1, FALSE_LESIONS)}
COLUMNS |= {
    measure.key: f"{measure.title}, {'in the mask' if measure.region == MASK else measure.region}"
    for measure in SYNTHESIS_MEASURES
}
RESEARCH = (
    "Research on MR images like those it was trained on. It is not a medical device and was not validated for "
    "diagnosis or treatment."
)


@dataclasses.dataclass(frozen=True)
class Member:
    """One network of an exported model, as described by its cell; None where the cell has no such record.

    Attributes:
        model: Content of model.json.
        metrics: Content of metrics.json.
        environment: Content of environment.json.
        pretrained_on: Number of subjects used in pretraining, without labels.
    """

    model: Preprocessing
    metrics: dict | None = None
    environment: dict | None = None
    pretrained_on: int | None = None


def model_card(members, *, licence, intended_use=RESEARCH, files=()):
    """Write the card of a finetuned model.

    Args:
        members: A `Member` for each network that the model averages.
        licence: Name of the licence, such as an SPDX identifier.
        intended_use: Sentences.
        files: `(name, description)` of the files in the folder.

    Returns:
        Markdown text.
    """
    model, several = members[0].model, len(members) > 1
    made, inputs = ", ".join(model.makes), ", ".join(model.contrasts)
    task = "image-to-image" if model.targets else "image-segmentation"
    network = f"the mean of {len(members)} U-Nets" if several else "a U-Net"
    verb = "Synthesises" if model.targets else "Segments"
    size = " × ".join(map(str, model.input_size))
    return "\n".join(
        [
            *_front_matter(licence, task),
            f"# {model.name or 'Model'}: {made}",
            f"\n{verb} {made} from {inputs}: {network}, on {size} pixels.\n",
            *_data(members),
            *_scores(members),
            *_preprocessing(model),
            *_files(files),
            *_use_and_limits(members, intended_use),
            *_in_torch(model, files, is_single=not several),
            *_licence(licence),
            *_origin(members),
        ]
    )


def encoder_card(encoder, environment, *, licence, files=()):
    """Write the card of a pretrained encoder, an `EncoderDescription`; other arguments as for `model_card`."""
    shown = ", ".join(encoder.contrasts or encoder.contrasts_one_by_one)
    how = "" if encoder.contrasts else ", one at a time, whichever it is"
    levels = " → ".join(map(str, encoder.filters))
    return "\n".join(
        [
            *_front_matter(licence, "image-feature-extraction"),
            f"# {encoder.name}: encoder, stage {encoder.stage}\n",
            f"Feature maps of {shown}{how}: {len(encoder.filters)} levels ({levels} channels), finest first.\n",
            "## Data\n",
            *_table({"dataset": encoder.name, "scans": _kind_of_scans(encoder), "subjects": encoder.subjects}),
            *_preprocessing(encoder),
            *_files(files),
            "## Intended use\n",
            f"Initial weights for networks that process such images. {RESEARCH}\n",
            *_in_torch(encoder, files),
            *_licence(licence),
            *_origin([Member(encoder, None, environment)]),
        ]
    )


def _front_matter(licence, task):
    import yaml

    about = {"license": licence, "library_name": "keras", "pipeline_tag": task, "tags": ["mri", "medical"]}
    return ["---", yaml.safe_dump(about, sort_keys=False).strip(), "---\n"]


def _data(members):
    model, metrics = members[0].model, members[0].metrics
    rows = {"dataset": model.name or "not recorded", "scans": _kind_of_scans(model)}
    rows["subjects finetuned on" if model.targets else "annotated subjects trained on"] = _each(
        len(m.model.trained_on) for m in members
    )
    if metrics:
        rows["validation subjects"] = _each(len(m.metrics["validation_subjects"]) for m in members if m.metrics)
        rows["test subjects"] = _each(len(_subjects(m.metrics)) for m in members if m.metrics)
        rows["start of training"] = _each(_start(m) for m in members if m.metrics)
    return ["## Data\n", *_table(rows)]


def _start(member):
    init, seen = member.metrics["init"], member.pretrained_on
    if init == "random":
        return "random weights"
    return f"{init}, pretrained" + (f" on {counted(seen, 'subject')} without labels" if seen else "")


def _kind_of_scans(model):
    if "simulated" not in model.model_fields_set:
        return "not recorded"
    return "**simulated**: the scores say nothing about real scans" if model.simulated else "real"


def _scores(members):
    found = [member.metrics for member in members if member.metrics]
    lines = ["## Scores on test subjects\n"]
    if not found:
        return [*lines, "None came with the model.\n"]
    several = len(found) > 1
    columns = [key for key in COLUMNS if any(row.get(key) is not None for m in found for row in m["per_subject"])]
    absent = "" if members[0].model.targets else " (none for a class absent from both prediction and reference)"
    lines += ["Mean ± standard deviation over test subjects, whole volumes on the scans' own voxels;"]
    lines += [f"n: subjects with a score{absent}."]
    lines += ["Each network is scored alone; the mean of them, which this model is, was not."] * several
    head = [*["network"] * several, "class", *(COLUMNS[key] for key in columns), "n"]
    lines += ["", _row(head), _row(["---"] * len(head))]
    for number, metrics in enumerate(found, start=1):
        for label in dict.fromkeys(row["label"] for row in metrics["per_subject"]):
            rows = [row for row in metrics["per_subject"] if row["label"] == label]
            cells = [_mean([row.get(key) for row in rows], MEASURES[key].digits) for key in columns]
            scored = sum(row.get(columns[0]) is not None for row in rows) if columns else 0
            lines.append(_row([*[number] * several, label, *cells, scored]))
    return [*lines, ""]


def _mean(values, digits):
    values = [value for value in values if value is not None and math.isfinite(value)]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def _preprocessing(model):
    low, high = model.percentiles
    pixels = model.slices.pixel_size
    rows, columns = model.slices.image_size
    where = "in the mask that comes with each scan" if model.mask else "in the foreground (found by Otsu's threshold)"
    unit = "mm" if model.voxel_size_known else "times the unit of the scan's header"
    steps = [
        f"each contrast scaled so that its percentiles {low:g} and {high:g} {where} become 0 and 1, and cut off there",
        "turned to axial slices: rows run to posterior, columns to the patient's left",
        f"resampled in the plane to {pixels:g} {unit}" if pixels else "pixels as they are",
        f"cropped or padded with zeros about the centre to {rows} × {columns}",
    ]
    if model.contrasts:
        steps.append(f"channels: {', '.join(model.contrasts)}, in this order")
    if model.resample_to:
        steps.insert(0, f"contrasts on other grids resampled to that of {model.resample_to}, linearly")
    if model.bias_correction:
        steps.insert(0, f"N4 bias correction of {', '.join(model.bias_correction)}")
    return ["## Preprocessing\n", "What predict.py does to a scan first:\n", *(f"- {step}" for step in steps), ""]


def _files(files):
    return ["## Files\n", *_table({f"`{name}`": what for name, what in files})] if files else []


def _use_and_limits(members, intended_use):
    model = members[0].model
    limits = [
        "It knows one dataset. Other scanners, sequences, ages and diseases are unknown to it: check its results on "
        "some of your own scans before you use it on the rest.",
    ]
    if not model.voxel_size_known:
        limits.append("The voxel size of its scans was not known, so it gives no volumes in mL.")
    if model.simulated:
        limits.append("It was trained on simulated scans.")
    use = "```\npython predict.py --model FOLDER --input scans/ --output predictions/\n```\n"
    return ["## Use\n", use, "## Intended use and limits\n", intended_use, "", *(f"- {limit}" for limit in limits), ""]


def _in_torch(model: Preprocessing, files: Sequence[tuple[str, str]], is_single: bool = True) -> list[str]:
    """Say how to use the exported PyTorch module; nothing if there is none."""
    file = next((name for name, _ in files if name.endswith(".pt")), None)
    if file is None:
        return []
    rank, channels = 2, 1
    made, is_what = "features", "a list of the features of every level, finest first"
    if isinstance(model, EncoderDescription):
        rank, channels = model.rank, len(model.contrasts or (None,))
    elif isinstance(model, SynthesisModel):
        rank, channels = len(model.input_size), len(model.contrasts)
        made, is_what = "synthesised", "the synthesised contrasts, with the scale of training"
    elif isinstance(model, SegmentationModel):
        rank, channels = len(model.input_size), len(model.contrasts)
        logits = "; `logits(images)` of the network gives them before the softmax" if is_single else ""
        made, is_what = "probabilities", f"the probabilities of background and classes{logits}"
    sizes = [str(2 ** max(5, len(model.filters) - 1))] * rank
    size = ", ".join(["1", str(channels), *sizes])
    code = ["import torch", "from unet import load", "", f'{made} = load("{file}")(torch.rand({size}))']
    axes = "batch, contrasts, rows, columns" + (", slices" if rank == 3 else "")
    return [
        "## In PyTorch\n",
        *("```python", *code, "```\n"),
        f"`unet.py` needs PyTorch alone; `load` returns a `torch.nn.Module`. Images are `({axes})`, preprocessed as "
        f"above, and the output is {is_what}.\n",
    ]


def _licence(licence):
    return ["## Licence\n", f"{licence}\n"]


def _origin(members):
    first = members[0].environment or {}
    rows = {"hash of the config": _each(member.model.config_hash or "not recorded" for member in members)}
    if any(member.metrics for member in members):
        rows["seed"] = _each(member.metrics["seed"] for member in members if member.metrics)
        rows["repeat"] = _each(member.metrics["repeat"] for member in members if member.metrics)
    if first:
        packages = first.get("packages", {})
        rows["started"] = first.get("started")
        rows["backend"] = f"{first.get('backend')} on {first.get('device')}"
        rows["versions"] = ", ".join(f"{name} {packages[name]}" for name in ("keras", "tensorflow") if name in packages)
        rows["code"] = (first.get("git") or {}).get("commit") or "not recorded"
    return ["## How it was made\n", *_table(rows)]


def _each(values):
    """Return the common value, or all values if they differ."""
    values = [str(value) for value in values]
    return values[0] if len(set(values)) == 1 else ", ".join(values)


def _subjects(metrics):
    return {row["subject"] for row in metrics["per_subject"]}


def _table(rows):
    return [_row(("", "")), _row(("---", "---")), *(_row(pair) for pair in rows.items()), ""]


def _row(cells):
    return f"| {' | '.join(map(str, cells))} |"
