"""Room on the disk, asked for before HDF5 writes.

Where a disk is full, HDF5 may fail in its caches, raise no error when the file is closed and end the process with a
segmentation fault (HDF5 1.14). So it is not left to find out: as much as it is about to write is allocated in a file
beside, which is deleted at once.
"""

import os

from utils.runs import TEMPORARY

SLACK = 4 << 20  # bytes: chunks that are not full, and the description of the file


def ask_for_room(path, count):
    """Raise OSError unless so many bytes, and some more, fit on the disk of a file that is being written.

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
