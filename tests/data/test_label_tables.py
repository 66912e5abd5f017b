"""Names and colours beside label maps, read back by the rules of BIDS, ITK-SNAP and 3D Slicer."""

import json
import re

import pandas as pd
import pytest

from data.derivatives import describe_outputs, label_table_prefix, output_path
from data.label_tables import CTBL, DSEG, SNAP, write_label_tables
from data.scans.volumes import write_nifti
from tests.layouts import AFFINE, corner
from utils.label_colours import legend_of

LEGEND = legend_of({"liver": 1, "left_kidney": 2, "spleen-2": 3}, {"liver": "#0A0BFF"})
FOUND = {1: ("liver", (10, 11, 255)), **{label.number: (label.name, label.rgb) for label in LEGEND[1:]}}


@pytest.fixture
def folder(tmp_path):
    write_label_tables(tmp_path, LEGEND)
    return tmp_path


def test_the_table_of_bids_is_read_by_pandas(folder):
    table = pd.read_csv(folder / DSEG, sep="\t", keep_default_na=False)
    assert list(table.columns) == ["index", "name", "color"] and table["index"].tolist() == [0, 1, 2, 3]
    assert table["name"].tolist() == ["background", "liver", "left_kidney", "spleen-2"]
    assert table["color"].str.fullmatch("#[0-9A-F]{6}").all()  # hexadecimal, by the specification
    found = {int(row["index"]): (row["name"], tuple(bytes.fromhex(row["color"][1:]))) for _, row in table.iterrows()}
    assert found.pop(0) == ("background", (0, 0, 0)) and found == FOUND


def test_pybids_finds_the_table_of_a_label_map(tmp_path):
    from bids import BIDSLayout

    (tmp_path / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.10.0"}))
    scan = tmp_path / "sub-01/anat/sub-01_T1w.nii.gz"
    write_nifti(scan, corner([1]), AFFINE)
    derivative = tmp_path / "derivatives/ours"
    write_nifti(output_path("bids", derivative, "sub-01", "label"), corner([2, 1]), AFFINE, intent="label")
    describe_outputs("bids", derivative, "x", {"liver": 1})
    write_label_tables(derivative, LEGEND, label_table_prefix("bids"))
    layout = BIDSLayout(tmp_path, derivatives=[derivative])
    [image] = layout.get(suffix="dseg", extension=".nii.gz", scope="all")
    [table] = layout.get(suffix="dseg", extension=".tsv", scope="all")
    assert image.entities["desc"] == table.entities["desc"] == "mrccl"
    frame = table.get_df()
    assert dict(zip(frame["index"], frame["name"], strict=True))[2] == "left_kidney"
    assert dict(zip(frame["index"], frame["color"], strict=True))[1] == "#0A0BFF"


def test_label_descriptions_of_itk_snap(folder):
    """As its ColorLabelTable reads them: comments, then IDX R G B A VIS MSH "LABEL"; label 0 is the clear one."""
    line = re.compile(r'\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d*\.?\d+)\s+([01])\s+([01])\s+"([^"]*)"')
    rows = [row for row in (folder / SNAP).read_text().splitlines() if row and not row.startswith("#")]
    found = {int(number): rest for number, *rest in (line.fullmatch(row).groups() for row in rows)}
    assert found.pop(0) == ["0", "0", "0", "0", "0", "0", "Clear Label"]
    assert {number: (rest[-1], tuple(map(int, rest[:3]))) for number, rest in found.items()} == FOUND
    assert all(rest[3:6] == ["1", "1", "1"] for rest in found.values())  # opaque, visible, in the mesh


def test_a_color_table_of_slicer(folder):
    """As vtkMRMLColorTableStorageNode reads it: index, name without spaces, R, G, B, A from 0 to 255."""
    first, *lines = (folder / CTBL).read_text().splitlines()
    assert first == "# Color table file"
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert all(len(row) == 6 for row in rows) and rows[0] == ["0", "background", "0", "0", "0", "0"]
    found = {int(number): (name, tuple(map(int, rgb))) for number, name, *rgb, alpha in rows[1:] if alpha == "255"}
    assert found == FOUND


def test_the_same_classes_give_the_same_bytes_and_nothing_is_left_over(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.keys() == {DSEG, SNAP, CTBL} and not any(b"\r" in content for content in before.values())
    write_label_tables(folder, LEGEND)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write_label_tables(folder / "one", LEGEND, label_table_prefix("bids", "scan"))
    assert {path.name: path.read_bytes() for path in (folder / "one").iterdir()} == {
        f"scan_{name}": content for name, content in before.items()
    }
