"""The table beside the constraint maps: one row per finished map, and the settings that made it."""

import csv
import io
import logging

from utils.checks import InputError, counted
from utils.runs import atomic_path
from utils.texts import NotUtf8, read_text

NAMES_SHOWN = 5
log = logging.getLogger("mrccl")


def read_summary(path):
    """Read the `summary.csv` written by step 1.

    Returns:
        Subject -> row, a dictionary of strings; empty if there is no file yet.

    Raises:
        InputError: The file is not such a table of maps.
    """
    if not path.is_file():
        return {}
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
        if any(None in row or None in row.values() for row in rows):
            raise csv.Error("rows differ in length")
        return {row["subject"]: row for row in rows if row["config_hash"] and row["seed"]}
    except (csv.Error, NotUtf8, KeyError) as error:
        raise InputError(
            f"{path}: not a summary of constraint maps ({error}); delete it, and the maps are made again"
        ) from None


def write_summary(path, rows):
    """Write the rows in the order of their subjects, with all columns that occur in any of them, atomically."""
    rows = [rows[subject] for subject in sorted(rows)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns or ["subject", "config_hash", "seed"], restval="")
        table.writeheader()
        table.writerows(rows)


def refuse_other_settings(path, rows, config_hash, seed):
    """Raise InputError if maps were made with another config or seed, so that different maps are never mixed.

    Args:
        path: `summary.csv`, for the message.
        rows: From `read_summary`.
        config_hash: `Config.hash_of_maps()`.
        seed: Seed of the config.
    """
    others = [name for name, row in rows.items() if (row["config_hash"], row["seed"]) != (config_hash, str(seed))]
    if others:
        shown = ", ".join(others[:NAMES_SHOWN]) + (", ..." if len(others) > NAMES_SHOWN else "")
        some = counted(len(others), f"map ({shown}) was", f"maps ({shown}) were")
        raise InputError(
            f"{path}: {some} made with other contrasts, settings or seed than the config "
            "has now; make them again with generate_constraint_maps.py --overwrite, or give another --work-dir"
        )


def refuse_unlisted(path, rows, subjects):
    """Raise InputError if maps have no row in the table beside them, which leaves their origin unknown.

    Maps made elsewhere, without any table, are accepted with a warning.

    Args:
        path: `summary.csv`.
        rows: From `read_summary`.
        subjects: Subjects whose maps are used.
    """
    unlisted = [name for name in subjects if name not in rows and (path.parent / f"{name}.nii.gz").exists()]
    if not unlisted:
        return
    shown = ", ".join(unlisted[:NAMES_SHOWN]) + (", ..." if len(unlisted) > NAMES_SHOWN else "")
    if rows:
        cure = "run generate_constraint_maps.py again, which makes them again"
        raise InputError(f"{path}: has no row for {counted(len(unlisted), 'map')} ({shown}); {cure}")
    made = f"{counted(len(unlisted), 'map')} ({shown})"
    log.warning("%s: does not exist or is empty; nothing says what made %s", path, made)
