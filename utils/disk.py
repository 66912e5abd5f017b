"""What is said when a disk is full or may not be written."""

import contextlib
import errno
import os
import re

from utils.checks import InputError

CURES = {
    errno.ENOSPC: "free some space and type the same command again: finished work is kept",
    errno.EDQUOT: "free some of your quota and type the same command again: finished work is kept",
    errno.EROFS: "give {place} that can be written",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give {place} that you may write, or mend the permissions"),
}


def trouble_with_disk(error, option="--work-dir"):
    """Return one line on a full or read-only disk, or a folder that may not be written; None for other errors.

    Args:
        error: Exception; those that it was raised in are looked at, too.
        option: The option with which a user says where results go.
    """
    known, place = CURES, f"{'an' if option.startswith('--o') else 'a'} {option}"
    while error:
        found = re.search(r"errno = (\d+)", str(error))  # HDF5 says it in its text only
        if number := getattr(error, "errno", None) or (found and int(found[1])):
            where = f"{error.filename}: " if getattr(error, "filename", None) else ""
            cure = known[number].format(place=place) if number in known else ""
            return f"{where}{os.strerror(number).lower()}; {cure}" if cure else None
        # Some libraries stumble once more when they close what they could not write.
        error, known = error.__context__, {number: CURES[number] for number in (errno.ENOSPC, errno.EDQUOT)}
    return None


@contextlib.contextmanager
def results_go_to(option):
    """Say trouble with the disk in the words of a script that has no work dir, but an option of another name."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if reason := trouble_with_disk(error, option):
            raise InputError(reason) from None
        raise
