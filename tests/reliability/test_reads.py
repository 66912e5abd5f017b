"""How often a step opens the files of a subject: once in the check of all subjects, and once for its work."""

import builtins
import collections
import io
from pathlib import Path

import nibabel
import pytest

from tests.bad_input.harness import run
from tests.cohort import CONFIG, FIRST_FOUR, MODEL, SUBJECTS, write_cohort
from training.cells import kept_while_small

MAPS, SLICES, _, CELLS = FIRST_FOUR
CHECK_AND_WORK, CHECK_ALONE = 2, 1
pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.fixture
def opened(monkeypatch):
    """Count how often scans are opened for their header, voxels or hash, by path."""
    counts, within = collections.Counter(), []

    def counting(function):
        def counted(path, *words, **keys):
            mode = words[0] if words else keys.get("mode", "r")
            if not within and str(path).endswith((".nii", ".nii.gz")) and "w" not in mode:
                counts[Path(path)] += 1
            within.append(path)  # nibabel opens a file more than once to read its header
            try:
                return function(path, *words, **keys)
            finally:
                within.pop()

        return counted

    for module, name in ((builtins, "open"), (io, "open"), (nibabel, "load")):
        monkeypatch.setattr(module, name, counting(getattr(module, name)))
    return counts


def of_one(counts, folder, subject):
    """Return the counts for one subject's files, by name in a folder, and reset all counts."""
    found = {path.relative_to(folder).as_posix(): count for path, count in counts.items() if subject in str(path)}
    counts.clear()
    return found


def test_each_file_is_opened_once_by_the_check_and_once_by_the_work(tmp_path, opened):
    data = CONFIG["data"] | {"root": str(tmp_path / "data"), "mask": "{subject}/mask.nii.gz"}
    maps = CONFIG["constraint_maps"] | {"spaces": {"other": ["t2", "t1"]}}
    cells = CONFIG["finetuning"] | {"inits": ["random"], "repeats": 2}
    config = write_cohort(tmp_path, data=data, constraint_maps=maps, finetuning=cells, pretraining=None)
    opened.clear()
    both = {f"data/sub-3/{name}.nii.gz": CHECK_AND_WORK for name in ("t1", "t2", "mask")}
    label = "data/sub-3/label.nii.gz"

    assert run(MAPS, "--config", config).code == 0
    assert of_one(opened, tmp_path, "sub-3") == both | {label: CHECK_ALONE}
    made = {f"work/constraint_maps/{folder}sub-3.nii.gz": CHECK_AND_WORK for folder in ("", "other/")}
    assert run(SLICES, "--config", config).code == 0
    assert of_one(opened, tmp_path, "sub-3") == both | made | {label: CHECK_AND_WORK}
    assert run(CELLS, "--config", config).code == 0  # two cells
    assert set(opened.values()) == {1} and of_one(opened, tmp_path, "sub-3") == {label: 1}
    model = tmp_path / "work" / MODEL
    assert run("predict", "--model", model, "--input", tmp_path / "data", "--output", tmp_path / "out").code == 0
    found = of_one(opened, tmp_path, "sub-3")
    assert found.pop("out/sub-3.nii.gz") == 1  # for its volumes
    assert found == {"data/sub-3/t1.nii.gz": CHECK_AND_WORK, "data/sub-3/mask.nii.gz": CHECK_AND_WORK}


def test_check_dataset_opens_headers_and_label_maps_and_draws_some(tmp_path, opened):
    config = write_cohort(tmp_path)
    opened.clear()
    assert run("tools.check_dataset", "--config", config, "--pictures", 1).code == 0
    drawn = [name for name in SUBJECTS if opened[tmp_path / f"data/{name}/t1.nii.gz"] > 1]
    assert len(drawn) == 1
    for subject in SUBJECTS:
        count = 2 if subject in drawn else 1
        expected = {f"data/{subject}/{name}.nii.gz": count for name in ("t1", "t2", "label")}
        assert {str(p.relative_to(tmp_path)): n for p, n in opened.items() if subject in p.parts} == expected
    opened.clear()
    assert run("tools.check_dataset", "--config", config, "--pictures", 1, "--whole").code == 0
    assert opened[tmp_path / "data/sub-3/label.nii.gz"] == 1


def test_references_are_kept_as_long_as_they_are_small():
    import numpy as np

    read = []

    def reading(name):
        read.append(name)
        return np.zeros(4, np.uint8), np.zeros(4, np.uint8)

    reference = kept_while_small(reading, most_bytes=20)
    for name in "abcabc":
        assert [part.tolist() for part in reference(name)] == [[0] * 4] * 2
    assert read == ["a", "b", "c", "c"]  # the third would make 24 bytes
    with pytest.raises(ValueError, match="read-only"):
        reference("a")[0][0] = 1
