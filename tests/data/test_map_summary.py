"""summary.csv: rows are read back as written, and maps with other settings are refused."""

import pytest

from data.map_summary import read_summary, refuse_other_settings, write_summary
from utils.checks import InputError


def row(subject, config_hash="abc", seed=1, **more):
    return {"subject": subject, "config_hash": config_hash, "seed": seed, **more}


def test_rows_are_sorted_and_keep_every_column(tmp_path):
    path = tmp_path / "summary.csv"
    write_summary(path, {"sub-2": row("sub-2", voxels=7), "sub-1": row("sub-1", voxels=8, classes=3)})
    lines = path.read_text().splitlines()
    assert lines[0] == "subject,config_hash,seed,voxels,classes"
    assert lines[1:] == ["sub-1,abc,1,8,3", "sub-2,abc,1,7,"]
    assert read_summary(path)["sub-2"] == {
        "subject": "sub-2",
        "config_hash": "abc",
        "seed": "1",
        "voxels": "7",
        "classes": "",
    }
    assert [p.name for p in tmp_path.iterdir()] == ["summary.csv"]


def test_nothing_yet_and_nothing_left(tmp_path):
    path = tmp_path / "maps" / "summary.csv"
    assert read_summary(path) == {}
    write_summary(path, {})
    assert read_summary(path) == {}


@pytest.mark.parametrize("text", ["subject;config_hash\nsub-1;abc\n", "subject,config_hash,seed\nsub-1,abc\n", "\xff"])
def test_another_table_is_refused(tmp_path, text):
    path = tmp_path / "summary.csv"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"summary.csv: not a summary of constraint maps \(.+\); delete it"):
        read_summary(path)


@pytest.mark.parametrize("made", [row("sub-3", config_hash="old"), row("sub-3", seed="2")])
def test_maps_of_other_settings_are_refused(tmp_path, made):
    rows = {"sub-1": row("sub-1", seed="1"), "sub-3": made}
    with pytest.raises(InputError, match=r"1 map \(sub-3\) was made with other contrasts, settings or seed"):
        refuse_other_settings(tmp_path / "summary.csv", rows, "abc", 1)
    refuse_other_settings(tmp_path / "summary.csv", {"sub-1": row("sub-1", seed="1")}, "abc", 1)


def test_a_long_list_of_other_maps_is_cut(tmp_path):
    rows = {f"sub-{n}": row(f"sub-{n}", config_hash="old") for n in range(9)}
    with pytest.raises(InputError, match=r"9 maps \(sub-0, sub-1, sub-2, sub-3, sub-4, \.\.\.\)"):
        refuse_other_settings(tmp_path / "summary.csv", rows, "abc", 1)
