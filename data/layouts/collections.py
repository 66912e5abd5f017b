"""Layouts of published datasets: BraTS, Medical Segmentation Decathlon, nnU-Net raw folders."""

import contextlib
import os
import re
from collections import defaultdict

from data.layouts.files import SUFFIXES, Found, known_name, stem_of, walk_scans
from utils.checks import InputError
from utils.paths import composed, existing_form
from utils.runs import read_json

# BraTS 2018 to 2021, and from 2023: how file names end, and what label values mean. Value 4 became 3 in 2023; 4 came
# back in 2024 for the resection cavity.
BRATS_ENDINGS = (
    {"t1": "_t1", "t1gd": "_t1ce", "t2": "_t2", "flair": "_flair", "label": "_seg"},
    {"t1": "-t1n", "t1gd": "-t1c", "t2": "-t2w", "flair": "-t2f", "label": "-seg"},
)
BRATS_LABELS = (
    {"necrosis": (1,), "oedema": (2,), "enhancing": (4,)},
    {"necrosis": (1,), "oedema": (2,), "enhancing": (3,), "resection_cavity": (4,)},
)
PAEDIATRIC = "BraTS-PED"  # the meaning of its values changes from year to year, so they get no names
TIMEPOINT = re.compile(r"(BraTS-.+)-\d{3}")


def find_brats(wanted):
    """Layout brats: `<subject>_t1ce.nii.gz` (2018 to 2021) or `<subject>-t1c.nii.gz` (from 2023), at any depth.

    A folder may hold both: the file names of each subject determine the meaning of its label values. Since 2023,
    identifiers end in the number of the scan (`BraTS-GLI-00005-101`); the part before it is the person.
    """
    # The names used in the files are accepted too: t1ce and t1c mean t1gd.
    known = {ending[1:]: name for endings in BRATS_ENDINGS for name, ending in endings.items() if name != "label"}
    known |= {name: name for name in BRATS_ENDINGS[0] if name != "label"}
    roles = {}
    for name, entry in wanted.entries.items():
        roles["contrast", name] = known[known_name(entry, list(known), f"data.contrasts.{name}", "BraTS")]
    roles |= {("label", "label"): "label"} if wanted.labels else {}
    old, new = BRATS_ENDINGS
    looked_for = {key: f"{{subject}}{old[name]}.nii.gz or {{subject}}{new[name]}.nii.gz" for key, name in roles.items()}
    found, kinds = Found(looked_for), {}
    for path in walk_scans(wanted.root):
        for kind, endings in enumerate(BRATS_ENDINGS):
            for key, name in roles.items():
                subject = stem_of(path).removesuffix(endings[name])
                if subject and subject != stem_of(path):
                    found.add(*key, subject, path)
                    kinds.setdefault(subject, set()).add(kind)
    for subject, both in kinds.items():
        if len(both) > 1:
            line = f"{subject}: has files of both naming schemes, such as _t1ce and -t1c; keep one"
            found.problems.append((subject, line))
        kind, timepoint = min(both), TIMEPOINT.fullmatch(subject)
        names = {} if subject.startswith(PAEDIATRIC) else BRATS_LABELS[kind]
        person = timepoint[1] if kind == 1 and timepoint else subject
        found.details[subject] = {"label_names": names, "person": person}
    return found


def find_msd(wanted):
    """Layout msd: files as listed in `dataset.json`; contrasts are named in its `modality`, volumes of one 4D file."""
    content = _description(wanted.root, ("training", "labels"))
    channels = _channels(wanted, content)
    count = len(content.get("modality") or content.get("channel_names"))
    roles = [("contrast", name) for name in channels]
    found = Found(dict.fromkeys(roles, "imagesTr/{subject}.nii.gz") | _label_role(wanted))
    names = _names_told(wanted.root, content)
    volumes = {name: (number, count) for name, number in channels.items()} if count > 1 else {}
    with _told_by(wanted.root):
        listed = [(entry["image"], entry.get("label")) for entry in content["training"]]
        listed += [(image, None) for image in content.get("test", ()) if wanted.test_images]
        listed = [tuple(name and existing_form(wanted.root / name) for name in pair) for pair in listed]
    for path, label in listed:
        if path.name.startswith("."):
            continue
        subject = stem_of(path)
        for key in roles:
            found.add(*key, subject, path)
        if label and wanted.labels:
            found.add("label", "label", subject, label)
        found.details[subject] = {"label_names": names, "volumes": volumes}
    return found


def find_nnunet(wanted):
    """Layout nnunet: `imagesTr/<case>_0000.nii.gz`, `labelsTr/<case>.nii.gz`, names in `dataset.json`."""
    content = _description(wanted.root, ("labels", "file_ending"))
    ending, channels = content["file_ending"], _channels(wanted, content)
    if ending not in SUFFIXES:
        path = wanted.root / "dataset.json"
        raise InputError(f"{path}: file_ending '{ending}' cannot be read; convert the images to .nii.gz")
    numbers = {name: f"{number:04d}" for name, number in channels.items()}
    looked_for = {("contrast", n): f"imagesTr/{{subject}}_{number}{ending}" for n, number in numbers.items()}
    found = Found(looked_for | _label_role(wanted, ending))
    folders = ["imagesTr", *(["imagesTs"] if wanted.test_images else [])]
    for name, number in numbers.items():
        for folder in folders:
            for path in sorted((wanted.root / folder).glob(f"*_{number}{ending}")):
                if not path.name.startswith("."):
                    found.add("contrast", name, path.name.removesuffix(f"_{number}{ending}"), path)
    for path in sorted((wanted.root / "labelsTr").glob(f"*{ending}")) if wanted.labels else ():
        if not path.name.startswith("."):
            found.add("label", "label", path.name.removesuffix(ending), path)
    names = _names_told(wanted.root, content)
    for subject in found.subjects():
        found.details[subject] = {"label_names": names}
    return found


def label_names(labels):
    """Read `labels` from a dataset.json: name -> values.

    Args:
        labels: `{"liver": 1}`, `{"whole": [1, 2]}` (regions) as in nnU-Net, or `{"1": "liver"}` as in the Decathlon.
    """
    pairs = [(value, key) if str(key).isdigit() else (key, value) for key, value in labels.items()]
    listed = [(composed(str(name)), value if isinstance(value, list) else [value]) for name, value in pairs]
    values_of = defaultdict(list)
    for name, values in listed:
        values_of[name].append(values)
    for name, several in values_of.items():
        if len(several) > 1:
            both = " and ".join(", ".join(map(str, each)) for each in several)
            raise InputError(f"labels {both} are both called '{name}'; give them different names")
    return {name: tuple(int(value) for value in values) for name, values in listed if name != "background"}


def _label_role(wanted, ending=".nii.gz"):
    return {("label", "label"): f"labelsTr/{{subject}}{ending}"} if wanted.labels else {}


def _names_told(root, content):
    with _told_by(root):
        return label_names(content["labels"])


@contextlib.contextmanager
def _told_by(root):
    """Turn the errors caused by a malformed dataset.json into one line."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        path = root / "dataset.json"
        if isinstance(error, InputError):
            raise InputError(f"{path}: {error}") from None
        raise InputError(f"{path}: does not follow its layout ({type(error).__name__}: {error}); fix it") from None


def _description(root, needed):
    """Read dataset.json and check that it has the required entries."""
    path = root / "dataset.json"
    if not path.is_file() or not os.access(path, os.R_OK):
        raise InputError(f"data.root: no readable '{path}'; set data.root to the folder that holds it")
    content = read_json(path, cure="fix it, or copy it again")
    missing = [key for key in needed if not isinstance(content, dict) or key not in content]
    if not missing and not (content.get("channel_names") or content.get("modality")):
        missing = ["channel_names or modality"]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}; add it, or choose another data.layout")
    return content


def _channels(wanted, content):
    """Return contrast -> number of its channel, as in dataset.json."""
    channels = content.get("channel_names") or content["modality"]
    numbers, place, found = defaultdict(list), wanted.root / "dataset.json", {}
    with _told_by(wanted.root):
        for number, name in channels.items():
            numbers[str(name)].append(int(number))
    for name, entry in wanted.entries.items():
        channel = known_name(entry, list(numbers), f"data.contrasts.{name}", f"the channels of {place}")
        if len(numbers[channel]) > 1:
            listed = " and ".join(map(str, numbers[channel]))
            raise InputError(f"{place}: channels {listed} are both called '{channel}'; give them different names")
        found[name] = numbers[channel][0]
    return found
