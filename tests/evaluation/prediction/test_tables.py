import functools
import threading

import nibabel
import numpy as np
import pytest

from evaluation.prediction import tables as prediction_tables
from evaluation.prediction.tables import INTENSITIES, VOLUMES, write_intensities, write_volumes


def volumes_of(folder, subject):
    path = folder / f"{subject}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), path)
    write_volumes(folder / VOLUMES, {subject: path}, {"liver": 1}, is_size_known=True)


def intensities_of(folder, subject):
    write_intensities(folder / INTENSITIES, subject, {"t1": (0.0, 10.0), "t2": None})


@pytest.mark.parametrize("add", [volumes_of, intensities_of])
def test_rows_added_by_a_concurrent_run_are_kept(add, tmp_path, monkeypatch):
    """The first run pauses between reading and writing the table, while the second one runs."""
    add(tmp_path, "sub-1")
    reading, go_on = threading.Event(), threading.Event()
    write = prediction_tables.write_rows

    def pause(*words):
        if threading.current_thread().name == "first":
            reading.set()
            go_on.wait(30)
        write(*words)

    monkeypatch.setattr(prediction_tables, "write_rows", pause)
    first = threading.Thread(target=functools.partial(add, tmp_path, "sub-2"), name="first")
    second = threading.Thread(target=functools.partial(add, tmp_path, "sub-3"), name="second")
    first.start()
    assert reading.wait(30)
    second.start()
    second.join(0.5)  # long enough to finish if it did not wait for its turn
    go_on.set()
    first.join(30)
    second.join(30)
    (table,) = tmp_path.glob("*.csv")
    subjects = [line.split(",")[0] for line in table.read_text().splitlines()[1:]]
    assert list(dict.fromkeys(subjects)) == ["sub-1", "sub-2", "sub-3"]
