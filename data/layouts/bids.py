"""Layout bids: the Brain Imaging Data Structure, with sessions and derivatives.

File names are parsed here, and tests compare files and entities with those of pybids. pybids itself is not used,
because it searches whole paths for known entities: below a folder `run-7` every scan belongs to run 7, and `foo-1_T1w`
counts as `T1w`. Either would silently select the wrong scans, and detecting it would mean parsing the names again.
"""

import csv
import fnmatch
import io
import re

from data.layouts.files import Found, stem_of, walk_scans
from utils.checks import InputError
from utils.paths import composed
from utils.texts import NotUtf8, read_text

ENTITY = re.compile(r"[A-Za-z0-9]+-[^_-][^_]*")
IDENTITY = ("sub", "ses")
EXAMPLE = "T1w, anat/ce-gadolinium_T1w, run-*_T2w or derivatives/NAME/desc-tumour_dseg"


def find_bids(wanted, role="contrast"):
    """Find scans by filters such as `ce-gadolinium_T1w`.

    A filter names all entities of a file except `sub` and `ses`, in any order, and its suffix; otherwise `T1w` would
    also match the scan with contrast agent. `run-*` allows any value of an entity, `*` any further entities. A leading
    folder restricts the data type (`anat/T1w`); `derivatives/NAME/` searches there instead of in the raw data.

    Identifiers are `sub-01`, or `sub-01_ses-02` where there are sessions; the person is `sub-01`.
    """
    filters = {(role, name): entry for name, entry in wanted.entries.items()}
    filters |= {("label", "label"): wanted.label} if wanted.label else {}
    found = Found(
        {key: f"{{subject}}_{text}" for key, text in filters.items()}, cure="name more entities in the filter"
    )
    listed, people = {}, {}
    for key, text in filters.items():
        folder, datatype, asked, suffix = parse_filter(text)
        if folder not in listed:
            listed[folder] = list(_named_scans(wanted.root, folder))
        for path, entities, its_suffix in listed[folder]:
            rest = [f"{name}-{value}" for name, value in entities.items() if name not in IDENTITY]
            if its_suffix != suffix or datatype not in (None, path.parent.name) or not _match(asked, rest):
                continue
            subject = "_".join(f"{name}-{entities[name]}" for name in IDENTITY if name in entities)
            people[subject] = f"sub-{entities['sub']}"
            found.add(*key, subject, path)
    names_in = {}
    for subject, person in people.items():
        found.details[subject] = {"person": person}
        for path in found.paths.get(("label", "label"), {}).get(subject, ())[:1]:
            found.details[subject]["label_names"] = _names_of(path, wanted.root, names_in)
    return found


def parse_filter(text):
    """Split a filter into `(folder of the derivative or None, data type or None, entities, suffix)`.

    Raises:
        InputError: The text is not a filter.
    """
    *folders, name = text.split("/")
    derivative = None
    if folders[:1] == ["derivatives"] and len(folders) > 1:
        derivative, folders = "/".join(folders[:2]), folders[2:]
    *asked, suffix = name.split("_")
    entities_are_sound = all(part == "*" or ENTITY.fullmatch(part) for part in asked)
    if len(folders) > 1 or not suffix.isalnum() or not entities_are_sound:
        raise InputError(f"data: '{text}' is not a filter of layout bids; write for instance {EXAMPLE}")
    for part in asked:
        if part.split("-")[0] in IDENTITY:
            raise InputError(f"data: '{text}': every subject and session is read; remove '{part}' from the filter")
    return derivative, (folders or [None])[0], asked, suffix


def parse_name(path):
    """Return `(entities, suffix)` of a file, or None if its name does not follow BIDS: `sub-01_ses-02_T1w.nii.gz`."""
    *parts, suffix = stem_of(path).split("_")
    if not parts or not parts[0].startswith("sub-") or not all(ENTITY.fullmatch(part) for part in parts):
        return None
    return dict(part.split("-", 1) for part in parts), suffix


def _named_scans(root, folder):
    """Yield `(path, entities, suffix)` of the raw data, or of one derivative."""
    top = root / folder if folder else root
    if not top.is_dir():
        raise InputError(f"data.root: no folder '{top}'; correct data.root or the filter")
    # Other folders (derivatives, sourcedata, code) may hold files named like scans.
    tops = [top] if folder else sorted(path for path in top.glob("sub-*") if path.is_dir())
    for place in tops:
        for path in walk_scans(place):
            if named := parse_name(path):
                yield path, *named


def _match(asked, entities):
    """Tell whether a file has exactly the requested entities."""
    is_open, rest = "*" in asked, list(entities)
    for pattern in asked:
        if pattern == "*":
            continue
        fitting = next((entity for entity in rest if fnmatch.fnmatchcase(entity, pattern)), None)
        if fitting is None:
            return False
        rest.remove(fitting)
    return is_open or not rest


def _names_of(label, root, names_in):
    """Return the names of a label map's values from the table beside it or in a parent folder; empty if there is none.

    Args:
        label: File.
        root: Folder of the dataset, where the search ends.
        names_in: Dictionary that this function fills with the results for each folder, so that each is searched only
            once: the time to search the top folder grows with the number of subjects.
    """
    own = label.with_name(f"{stem_of(label)}.tsv")
    if own.is_file():
        return _read_names(own)
    for folder in label.parents:
        if folder not in names_in:
            tables = [*sorted(folder.glob("dseg.tsv")), *sorted(folder.glob("desc-*_dseg.tsv"))]
            table = next((path for path in tables if path.is_file()), None)
            names_in[folder] = _read_names(table) if table else None
        if names_in[folder] is not None or folder == root:
            return names_in[folder] or {}
    return {}


def _read_names(table):
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(table), newline=""), delimiter="\t"))
        named = [(composed(row["name"]), int(row["index"])) for row in rows]
    except NotUtf8 as error:
        raise InputError(f"{table}: {error}") from None
    except (KeyError, ValueError, TypeError, AttributeError, csv.Error):
        raise InputError(f"{table}: expected the columns index and name; fix it") from None
    values = {}
    for name, value in named:
        if values.setdefault(name, value) != value:
            raise InputError(f"{table}: {values[name]} and {value} are both called '{name}'; give them different names")
    return {name: (value,) for name, value in values.items() if name.casefold() != "background"}
