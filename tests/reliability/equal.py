"""Compare two work dirs, apart from durations and records of the machine and the time.

python -m tests.reliability.equal ONE OTHER
"""

import csv
import io
import json
import sys
from pathlib import Path

import h5py
import nibabel
import numpy as np

RECORDS = {"environment.json", "run.log", "command.txt", "resolved_config.yaml"}  # time, machine, folder
PICTURES = {".png", ".pdf", ".html"}  # only their existence is compared; the tables hold their content
TIMES = ("seconds", "duration_s", "compile_s")


def differences(one, other, part="."):
    """Return one line for each file that differs or is in only one of the two folders."""
    one, other = Path(one) / part, Path(other) / part
    files = [{str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()} for top in (one, other)]
    lines = [f"{name}: only in one of both" for name in sorted(files[0] ^ files[1])]
    for name in sorted(files[0] & files[1]):
        path = Path(name)
        if path.name in RECORDS or path.suffix in PICTURES or "durations" in path.name:
            continue
        if not same(content(one / name), content(other / name)):
            lines.append(f"{name}: differs")
    return lines


def content(path):
    """Return the content of a file for comparison: dictionaries, lists, texts and arrays."""
    if path.name.endswith(".nii.gz"):
        image = nibabel.load(path)
        return {"voxels": np.asarray(image.dataobj), "affine": image.affine, "header": image.header.binaryblock}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return {name: file[name][()] for name in file} | {f"@{name}": file.attrs[name] for name in file.attrs}
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        return [without_times(row) for row in rows]
    return path.read_bytes()


def without_times(values):
    return {name: value for name, value in values.items() if not name.startswith(TIMES)}


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return one == other


if __name__ == "__main__":
    found = differences(*sys.argv[1:])
    print("\n".join(found) or "equal")
    raise SystemExit(bool(found))
