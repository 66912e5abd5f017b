"""Reserving disk space before HDF5 writes.

On a full disk, HDF5 may fail while flushing its caches, raise no error when the file is closed and crash with a
segmentation fault (HDF5 1.14). The space is therefore reserved first: as many bytes as HDF5 is about to write are
allocated in a file in the same folder, which is deleted at once.
"""

import os

from utils.runs import TEMPORARY

SLACK = 4 << 20  # bytes, for partial chunks and the description of the file


def ask_for_room(path, count):
    """Raise OSError if the disk of a file lacks space for this many bytes plus `SLACK`.

    Args:
        path: The file.
        count: Bytes.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    asked = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}.room")
    try:
        with open(asked, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, count + SLACK)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        asked.unlink(missing_ok=True)
