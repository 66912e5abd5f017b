"""File names of predictions: for plain folders, nnU-Net's evaluator and BIDS derivatives."""

from pathlib import Path

from data.layouts.bids import parse_filter
from utils.environment import project_version
from utils.runs import write_json

NAME = "mrccl"  # the desc- entity of this suite's results
BIDS_VERSION = "1.10.0"
SUFFIX_OF = {"label": "dseg", "probabilities": "probseg", "segments": "dseg"}
ENDING_OF = {"segments": ".seg.nrrd"}  # of others .nii.gz


def output_path(layout, folder, subject, what, entry=None):
    """Return the path of a prediction.

    Args:
        layout: `data.layout` of the config that the model was trained with.
        folder: Folder of the results; a separate BIDS derivative for layout bids.
        subject: Identifier, such as `sub-01_ses-02`.
        what: `label`, `segments` (the label map for 3D Slicer), `probabilities`, or the name of a synthesised contrast.
        entry: bids: filter of the synthesised contrast, whose suffix names it; not needed for other layouts.

    Returns:
        `<subject>.nii.gz` for a label map, as nnU-Net's evaluator requires, `<subject>.seg.nrrd` for the one of 3D
        Slicer, `<subject>_<what>.nii.gz` for others;
        for bids `sub-01/ses-02/anat/sub-01_ses-02_desc-mrccl_dseg.nii.gz`.
    """
    ending = ENDING_OF.get(what, ".nii.gz")
    if layout != "bids":
        return Path(folder) / f"{subject if what in ('label', 'segments') else f'{subject}_{what}'}{ending}"
    suffix = SUFFIX_OF.get(what)
    entities = []
    if suffix is None:
        _, _, asked, suffix = parse_filter(entry or what)
        # Entities that distinguish the contrast from others with that suffix; wildcards are unknown here.
        entities = [part for part in asked if "*" not in part and not part.startswith("desc-")]
    place = Path(folder).joinpath(*subject.split("_"), "anat")
    return place / f"{'_'.join([subject, *entities])}_desc-{NAME}_{suffix}{ending}"


def label_table_prefix(layout, output=None):
    """Return what the names of the tables of `data.label_tables` start with.

    Args:
        layout: `data.layout` of the config.
        output: Name of the label map without its suffix, if it is not one of a folder of results.
    """
    if output:
        return f"{output}_"
    return f"desc-{NAME}_" if layout == "bids" else ""


def describe_outputs(layout, folder, name, labels=None, channels=()):
    """Write the files that tools reading the results expect beside them; none for most layouts.

    For nnunet, `dataset.json` with the numbers of the classes; for bids, `dataset_description.json`, which makes the
    folder a derivative. `data.label_tables` names the classes in every layout.

    Args:
        layout: `data.layout` of the config.
        folder: Folder of the results.
        name: Name of the dataset.
        labels: Class name -> number in the label maps; None for synthesised contrasts.
        channels: Names of the model's input contrasts.
    """
    folder = Path(folder)
    if layout == "nnunet" and labels:
        numbers = {str(number): channel for number, channel in enumerate(channels)}
        content = {"channel_names": numbers, "labels": {"background": 0, **labels}, "file_ending": ".nii.gz"}
        write_json(folder / "dataset.json", content | {"numTraining": 0, "name": name})
    if layout != "bids":
        return
    about = {"Name": f"{name}: predictions", "BIDSVersion": BIDS_VERSION, "DatasetType": "derivative"}
    made_by = {"Name": NAME, "Version": project_version()}
    write_json(folder / "dataset_description.json", about | {"GeneratedBy": [made_by]})


def numbered_otherwise(labels, label_names):
    """Return the classes whose number in predictions differs from their value in the label maps of the dataset.

    Predictions number classes from 1 in the order of `data.labels`. An evaluator that compares the two files by value,
    such as nnU-Net's, needs the same numbers in both.

    Args:
        labels: `data.labels` of the config.
        label_names: `SubjectFiles.label_names`.

    Returns:
        Class name -> values on disk.
    """
    values = {
        name: [value for member in members for value in label_names.get(member, (member,))]
        for name, members in labels.items()
    }
    return {name: found for number, (name, found) in enumerate(values.items(), start=1) if found != [number]}
