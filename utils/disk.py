"""Messages about full and read-only disks and missing permissions."""

import contextlib
import errno
import os
import re

from utils.checks import InputError

CURES = {
    errno.ENOSPC: "free some space and rerun the command; finished work is kept",
    errno.EDQUOT: "free some of your quota and rerun the command; finished work is kept",
    errno.EROFS: "give {place} that can be written",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give {place} in which you may write, or fix the permissions"),
}


def trouble_with_disk(error, option="--work-dir"):
    """Return one line on a full or read-only disk, or an unwritable folder; None for other errors.

    Args:
        error: Exception; the exceptions in its context are checked as well.
        option: The option that sets where results are written.
    """
    known, place = CURES, f"{'an' if option.startswith('--o') else 'a'} {option}"
    while error:
        found = re.search(r"errno = (\d+)", str(error))  # HDF5 reports it only in its text
        if number := getattr(error, "errno", None) or (found and int(found[1])):
            where = f"{error.filename}: " if getattr(error, "filename", None) else ""
            cure = known[number].format(place=place) if number in known else ""
            return f"{where}{os.strerror(number).lower()}; {cure}" if cure else None
        # Some libraries fail again when they close what they could not write.
        error, known = error.__context__, {number: CURES[number] for number in (errno.ENOSPC, errno.EDQUOT)}
    return None


@contextlib.contextmanager
def results_go_to(option):
    """Report disk errors of a script that sets the place of its results with another option than --work-dir."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if reason := trouble_with_disk(error, option):
            raise InputError(reason) from None
        raise
