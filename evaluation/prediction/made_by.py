"""Records of which model made each result of predict.py, and how; compared before a result is kept."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from data.scans.subject import SubjectReader
from evaluation.prediction.tables import one_after_the_other, read_rows, write_rows
from models.portable import NETWORK
from utils.checks import InputError, counted
from utils.model_description import ModelDescription
from utils.work_dir import WEIGHTS

TABLE = "made_by.csv"
COLUMNS = ("subject", "result", "file", "model", "options", "scan")
NAMES_SHOWN = 5
ALSO_SHAPES = ("filters", "head_block")  # keys of model.json, in addition to those shared by members of an ensemble
REASONS = {
    "file": "there is no record of what made",
    "model": "another model made",
    "options": "other options made",
    "scan": "another scan, or an older version of it, was used for",
}
CURE = "give --overwrite to make them again, or another --output"


def hash_of_models(models: Mapping[Path, ModelDescription]) -> str:
    """Hash the models' computation and the meaning of their outputs, 16 hexadecimal digits; the order is irrelevant."""
    digests = sorted(_hash_of_model(folder, model) for folder, model in models.items())
    return hashlib.blake2b("".join(digests).encode(), digest_size=8).hexdigest()


def hash_of_scan(reader: SubjectReader, names: Iterable[str]) -> str:
    """Hash the bytes of all files from which a subject's prediction is made, 16 hexadecimal digits."""
    paths = {name: reader.files.contrasts[name] for name in names}
    paths |= {"mask ": reader.files.mask} if reader.files.mask else {}
    text = json.dumps({name: reader.digest(path) for name, path in sorted(paths.items())})
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def rows_of(subject, scan, paths, folder, model, options):
    """Describe the results of one subject.

    Args:
        subject: Name of the subject in the tables.
        scan: From `hash_of_scan`.
        paths: `{what: path}`.
        folder: Folder of the table.
        model: From `hash_of_models`.
        options: Kind of result -> command-line words that affect it.

    Returns:
        `{(subject, what): row}`.
    """
    rows = {}
    for what, path in paths.items():
        values = (subject, what, path.relative_to(folder).as_posix(), model, options[what], scan)
        rows[subject, what] = dict(zip(COLUMNS, values, strict=True))
    return rows


def refuse_others(folder, rows):
    """Refuse to keep results that come from another model, other options or another scan.

    Args:
        folder: Folder of the results.
        rows: `{(subject, what): row}` of the results that exist and would be kept.

    Raises:
        InputError: One line for each reason, with the files.
    """
    known, found = read_rows(folder / TABLE, COLUMNS), {}
    for key, row in rows.items():
        noted = known.get(key, {})
        differing = next((column for column in REASONS if noted.get(column) != row[column]), None)
        if differing:
            found.setdefault(differing, []).append(row["file"])
    lines = []
    for reason, files in found.items():
        shown = ", ".join(files[:NAMES_SHOWN]) + (", ..." if len(files) > NAMES_SHOWN else "")
        lines.append(f"--output {folder}: {REASONS[reason]} {counted(len(files), 'result')} there ({shown}); {CURE}")
    if lines:
        raise InputError(lines)


def note(folder, rows):
    """Write the rows of results before they are made, so that no result is ever without its row."""
    folder.mkdir(parents=True, exist_ok=True)
    with one_after_the_other(folder):
        write_rows(folder / TABLE, COLUMNS, (read_rows(folder / TABLE, COLUMNS) | rows).values())


def _hash_of_model(folder: Path, model: ModelDescription) -> str:
    described = model.what_must_agree() | {key: getattr(model, key, None) for key in ALSO_SHAPES}
    network = folder / NETWORK if (folder / NETWORK).is_file() else folder / WEIGHTS
    if not network.is_file():
        what = "is not a regular file" if network.exists() else "no such weight file"
        raise InputError(f"{network}: {what}")
    with open(network, "rb") as content:
        weights = hashlib.file_digest(content, "blake2b").hexdigest()
    text = json.dumps([weights, described], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
