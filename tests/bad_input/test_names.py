"""Duplicate names, files with two names, files that are not scans, and names in other forms of Unicode."""

import ast
import json
import logging
import shutil
import unicodedata

import pytest

from data.layouts.subjects import find_subjects
from data.splits import make_splits
from evaluation.report.figures import NAMES_AS_THEY_ARE, STYLE
from tests.bad_input.harness import ROOT, assert_refused, run
from tests.cohort import save, volumes, write_cohort
from tests.data.layouts.test_bids import LABEL, write_bids
from tests.layouts import write_brats, write_msd, write_nnunet
from tests.readers import read_label
from utils.checks import InputError
from utils.config.data import Wanted
from utils.config.load import load_config

FLAT = {"t1": "{subject}.nii.gz"}
LABELLED = {"label": "{subject}_seg.nii.gz", "labels": {"liver": [1]}}
NFD, NFC = "Jose\u0301", "Jos\u00e9"


def flat(root, *names):
    for name in names:
        save(root / f"{name}.nii.gz", volumes(len(name))["t1"])
    return root


# Files -> (contrasts, other keys, expected subjects).
CLAIMS = {
    "label maps beside scans": (["a", "a_seg", "b", "b_seg"], FLAT, LABELLED, ["a", "b"]),
    "masks beside scans": (["a", "a_mask", "b", "b_mask"], FLAT, {"mask": "{subject}_mask.nii.gz"}, ["a", "b"]),
    "scans beside label maps": (
        ["a", "a_t1", "b", "b_t1"],
        {"t1": "{subject}_t1.nii.gz"},
        LABELLED | {"label": "{subject}.nii.gz"},
        ["a", "b"],
    ),
    "a contrast called like another and more": (
        ["a_t1", "a_gd_t1", "b_t1", "b_gd_t1"],
        {"t1": "{subject}_t1.nii.gz", "t1gd": "{subject}_gd_t1.nii.gz"},
        {},
        ["a", "b"],
    ),
    "words before the name": (["a", "seg_a"], FLAT, LABELLED | {"label": "seg_{subject}.nii.gz"}, ["a"]),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_file_belongs_to_the_most_specific_pattern(name, tmp_path):
    files, contrasts, keys, expected = CLAIMS[name]
    found = find_subjects(Wanted(flat(tmp_path, *files), contrasts, **keys))
    assert list(found) == expected
    roles = [path for each in found.values() for path in (*each.contrasts.values(), each.label, each.mask) if path]
    assert len(roles) == len(set(roles)) == len(files)


def test_a_file_that_matches_two_patterns_equally_is_refused(tmp_path):
    flat(tmp_path, "aa_bb")
    patterns = {"t1": "{subject}_bb.nii.gz", "t2": "aa_{subject}.nii.gz"}
    with pytest.raises(InputError, match="aa_bb.nii.gz' matches as a file of both 'aa' and 'bb'; narrow the patterns"):
        find_subjects(Wanted(tmp_path, patterns))


def test_predictions_among_scans_and_sessions_are_pointed_out(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mrccl"), "propagate", True)
    found = find_subjects(Wanted(flat(tmp_path, "a", "b", "b_pred", "b_pred_2"), FLAT))
    assert len(found) == 4
    assert "2 subjects are named like another plus a suffix (b_pred beside b, b_pred_2 beside b_pred)" in caplog.text
    caplog.clear()
    find_subjects(Wanted(flat(tmp_path / "other", "sub-1", "sub-10", "sub-2"), FLAT))
    assert not caplog.text


SAME = "a file has one role: name each once"
TWICE = {
    "two contrasts": ("data.contrasts.t2='{{subject}}/t1.nii.gz'", "t1", "contrast 't1' and contrast 't2'"),
    "contrast and label": ("data.label='{{subject}}/t1.nii.gz'", "t1", "contrast 't1' and label"),
    "contrast and mask": ("data.mask='{{subject}}/t2.nii.gz'", "t2", "contrast 't2' and mask"),
    "label and mask": ("data.mask='{{subject}}/label.nii.gz'", "label", "label and mask"),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_file_with_two_roles_is_refused(name, tmp_path):
    change, file, roles = TWICE[name]
    config = write_cohort(tmp_path)
    line = f"sub-1: '{{data}}/sub-1/{file}.nii.gz' is {roles} (likewise for 2 more subjects); {SAME}"
    words = ["--config", config, "--set", change.format()]
    assert_refused(tmp_path, "generate_constraint_maps", words, [line], data=tmp_path / "data")


def test_a_link_to_the_scan_of_another_contrast_is_that_scan(tmp_path):
    config = write_cohort(tmp_path)
    scan = tmp_path / "data" / "sub-2" / "t2.nii.gz"
    scan.unlink()
    scan.symlink_to("t1.nii.gz")
    line = f"sub-2: '{{data}}/sub-2/t1.nii.gz' is contrast 't1' and contrast 't2'; {SAME}"
    assert_refused(tmp_path, "generate_constraint_maps", ["--config", config], [line], data=tmp_path / "data")


@pytest.mark.parametrize(
    ("layout", "write", "one", "other"),
    [
        ("msd", write_msd, "T2", "T2"),
        ("nnunet", write_nnunet, "ADC", "adc"),
        ("brats", lambda root: write_brats(root, "BraTS2021_00000", False), "t1ce", "t1gd"),
        ("bids", write_bids, "T1w", "anat/T1w"),
    ],
)
def test_no_layout_reads_one_scan_as_two_contrasts(layout, write, one, other, tmp_path):
    write(tmp_path)
    assert find_subjects(Wanted(tmp_path, {"a": one}, layout=layout))
    with pytest.raises(InputError, match="contrast 'a' and contrast 'b'"):
        find_subjects(Wanted(tmp_path, {"a": one, "b": other}, layout=layout))


@pytest.mark.parametrize("write", [write_msd, write_nnunet])
def test_channels_of_one_name_are_refused_when_one_of_them_is_meant(write, tmp_path):
    layout, path = write.__name__.removeprefix("write_"), tmp_path / "dataset.json"
    write(tmp_path)
    content = json.loads(path.read_text())
    key = "modality" if layout == "msd" else "channel_names"
    path.write_text(json.dumps(content | {key: {"0": "MRI", "1": "MRI"}}))
    with pytest.raises(InputError, match="channels 0 and 1 are both called 'MRI'; give them different names"):
        find_subjects(Wanted(tmp_path, {"t1": "MRI"}, layout=layout))
    path.write_text(json.dumps(content | {key: {"0": "FLAIR", "1": "Flair"}}))
    with pytest.raises(InputError, match="'flair' may be 'FLAIR' and 'Flair' of the channels .*; write it like one"):
        find_subjects(Wanted(tmp_path, {"t1": "flair"}, layout=layout))
    assert find_subjects(Wanted(tmp_path, {"t1": "Flair"}, layout=layout))


@pytest.mark.parametrize("write", [write_msd, write_nnunet])
def test_a_key_or_a_label_that_dataset_json_gives_twice_is_refused(write, tmp_path):
    layout, path = write.__name__.removeprefix("write_"), tmp_path / "dataset.json"
    write(tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"labels": {"0": "background", "1": "PZ", "2": "PZ"}}))
    with pytest.raises(InputError, match="dataset.json: labels 1 and 2 are both called 'PZ'; give them"):
        find_subjects(Wanted(tmp_path, {"t2": "T2"}, layout=layout, labels={"zone": ["PZ"]}))
    path.write_text(json.dumps(content)[:-1] + ', "labels": {}}')
    with pytest.raises(InputError, match="key 'labels' appears twice"):
        find_subjects(Wanted(tmp_path, {"t2": "T2"}, layout=layout))


def test_a_name_that_a_table_of_bids_gives_twice_is_refused(tmp_path):
    write_bids(tmp_path)
    table = tmp_path / "derivatives/manual/desc-tumour_dseg.tsv"
    table.write_text("index\tname\n1\tcore\n2\tcore\n")
    with pytest.raises(InputError, match="dseg.tsv: 1 and 2 are both called 'core'; give them different names"):
        find_subjects(Wanted(tmp_path, {"t1": "T1w"}, label=LABEL, layout="bids", labels={"core": ["core"]}))


@pytest.mark.parametrize("key", ["constraint_maps.contrasts", "pretraining.contrasts", "finetuning.contrasts.t1"])
def test_a_channel_that_a_list_of_the_config_names_twice_is_refused(key, tmp_path):
    with pytest.raises(InputError, match=f"{key}: 't1' is named twice; name each contrast once"):
        load_config(write_cohort(tmp_path), [f"{key}=[t1, t2, t1]"])


def decomposed(root):
    """Rename folders as a Mac does when it copies them."""
    for path in sorted(root.iterdir()):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))


def test_names_are_one_name_in_either_form_of_unicode(tmp_path):
    data = tmp_path / "data"
    config = write_cohort(tmp_path)
    for number in (1, 2, 3):
        (data / f"sub-{number}").rename(data / f"{NFC}{number}")
    decomposed(data)
    names = {"train": [f"{NFC}1"], "val": [f"{NFD}2"], "test": [f"{NFC}3"]}
    (data / "splits.json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
    words = ["--config", config, "--set", "data.splits=splits.json", "constraint_maps.clusters=2"]
    assert run("generate_constraint_maps", *words, "--subjects", f"{NFD}1", f"{NFC}2", f"{NFC}3").code == 0
    assert {path.name for path in (tmp_path / "work/constraint_maps").glob("*.nii.gz")} == {
        f"{NFC}{number}.nii.gz" for number in (1, 2, 3)
    }
    found = find_subjects(load_config(config).data.wanted())
    assert list(found) == [f"{NFC}{number}" for number in (1, 2, 3)]
    assert found[f"{NFC}1"].contrasts["t1"].exists()
    [split] = make_splits(names, data, found, 0)
    assert split.to_dict() == {"train": [f"{NFC}1"], "val": [f"{NFC}2"], "test": [f"{NFC}3"]}


def test_one_subject_in_both_forms_of_unicode_is_refused(tmp_path):
    write_cohort(tmp_path)
    for form in (NFC, NFD):
        shutil.copytree(tmp_path / "data" / "sub-1", tmp_path / "data" / form)
    with pytest.raises(InputError, match=f"{NFC}: 2 files match"):
        find_subjects(Wanted(tmp_path / "data", {"t1": "{subject}/t1.nii.gz"}))


def test_folders_patterns_and_lists_are_found_in_either_form(tmp_path):
    root = tmp_path / NFD
    save(root / f"T\u0065\u0302te_a_{NFD}.nii.gz", volumes(0)["t1"])
    pattern = f"T\u00eate_{{subject}}_{NFC}.nii.gz"
    assert list(find_subjects(Wanted(tmp_path / NFC, {"t1": pattern}))) == ["a"]
    write_msd(root, subjects=("x",), tests=())
    for folder in ("imagesTr", "labelsTr"):
        (root / folder / "x.nii.gz").rename(root / folder / f"{NFD}.nii.gz")
    content = json.loads((root / "dataset.json").read_text().replace("x.nii.gz", "NAME.nii.gz"))
    content = json.loads(json.dumps(content, ensure_ascii=False).replace("NAME", NFC))
    content["labels"] = {"0": "background", "1": NFD, "2": "TZ"}
    (root / "dataset.json").write_text(json.dumps(content))
    found = find_subjects(Wanted(tmp_path / NFC, {"t2": "T2"}, layout="msd", labels={"zone": [NFC], "other": ["TZ"]}))
    assert list(found) == [NFC]
    assert read_label(found[NFC], {"zone": [NFC], "other": ["TZ"]}).max() == 2


DOLLARS = ["A$^$B", "A$1$B", "'a' \"b\"", "a & b_c^d", "50 %"]


def test_subjects_of_any_name_have_their_pictures(tmp_path):
    config, data = write_cohort(tmp_path), tmp_path / "data"
    for name in DOLLARS:
        shutil.copytree(data / "sub-1", data / name)
    assert run("tools.check_dataset", "--config", config).code == 0
    assert run("generate_constraint_maps", "--config", config).code == 0
    drawn = {path.stem for path in (tmp_path / "work/constraint_maps/qc").glob("*.png")}
    assert drawn == {*DOLLARS, "sub-1", "sub-2", "sub-3"}


def test_every_module_that_makes_a_figure_draws_names_as_they_are():
    """In the report's style or with its rule for names; matplotlib renders text between dollar signs as a formula."""
    found = 0
    for path in (ROOT / "evaluation").rglob("*.py"):
        tree = ast.parse(path.read_text())
        drawing = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and {"panels", "_axes"} & called(node) and node.name != "panels"
        ]
        for function in drawing:
            found += 1
            words = [word for decorator in function.decorator_list for word in ast.walk(decorator)]
            styles = {word.id for word in words if isinstance(word, ast.Name)}
            assert styles & {"in_report_style", "NAMES_AS_THEY_ARE"}, f"{path.name}: {function.name}"
    assert found >= 10
    assert STYLE.items() >= NAMES_AS_THEY_ARE.items() and NAMES_AS_THEY_ARE == {"text.parse_math": False}


def called(function):
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    return {node.func.id for node in calls if isinstance(node.func, ast.Name)}


BOM = b"\xef\xbb\xbf"


def marked(path):
    """Save a text file as Windows editors do."""
    path.write_bytes(BOM + path.read_bytes())


@pytest.mark.parametrize("file", ["tiny.yaml", "data/splits.json", "work/constraint_maps/summary.csv"])
def test_text_files_with_a_byte_order_mark_are_read(file, tmp_path):
    config = write_cohort(tmp_path)
    names = {"train": ["sub-1"], "val": ["sub-2"], "test": ["sub-3"]}
    (tmp_path / "data" / "splits.json").write_text(json.dumps(names))
    words = ["--config", config, "--set", "data.splits=splits.json"]
    assert run("generate_constraint_maps", *words).code == 0
    marked(tmp_path / file)
    again = run("generate_constraint_maps", *words)
    assert again.code == 0 and any("3 of 3 subjects finished before" in line for line in again.logged)


@pytest.mark.parametrize("file", ["tiny.yaml", "data/splits.json", "work/constraint_maps/summary.csv"])
def test_text_files_in_another_encoding_are_refused(file, tmp_path):
    config = write_cohort(tmp_path)
    names = {"train": ["sub-1"], "val": ["sub-2"], "test": ["sub-3"]}
    (tmp_path / "data" / "splits.json").write_text(json.dumps(names))
    words = ["--config", config, "--set", "data.splits=splits.json"]
    assert run("generate_constraint_maps", *words).code == 0
    (tmp_path / file).write_bytes((tmp_path / file).read_text().encode("utf-16"))
    [line] = run("generate_constraint_maps", *words).said
    assert str(tmp_path / file) in line and "byte 0xff at position 1 is not UTF-8; save it as UTF-8" in line


@pytest.mark.parametrize(("layout", "write"), [("msd", write_msd), ("nnunet", write_nnunet)])
def test_dataset_json_is_read_with_a_byte_order_mark_and_refused_in_another_encoding(layout, write, tmp_path):
    write(tmp_path)
    path = tmp_path / "dataset.json"
    marked(path)
    assert find_subjects(Wanted(tmp_path, {"t2": "T2"}, layout=layout))
    path.write_bytes(path.read_text(encoding="utf-8-sig").encode("utf-16"))
    with pytest.raises(InputError, match="dataset.json: .*byte 0xff at position 1 is not UTF-8; save it as UTF-8"):
        find_subjects(Wanted(tmp_path, {"t2": "T2"}, layout=layout))


def test_tables_of_bids_are_read_with_a_byte_order_mark_and_refused_in_another_encoding(tmp_path):
    write_bids(tmp_path)
    table, wanted = tmp_path / "derivatives/manual/desc-tumour_dseg.tsv", {"core": ["core"]}
    before = find_subjects(Wanted(tmp_path, {"t1": "T1w"}, label=LABEL, layout="bids", labels=wanted))
    marked(table)
    assert find_subjects(Wanted(tmp_path, {"t1": "T1w"}, label=LABEL, layout="bids", labels=wanted)) == before
    table.write_bytes(table.read_text(encoding="utf-8-sig").encode("utf-16"))
    with pytest.raises(InputError, match="dseg.tsv: byte 0xff at position 1 is not UTF-8; save it as UTF-8"):
        find_subjects(Wanted(tmp_path, {"t1": "T1w"}, label=LABEL, layout="bids", labels=wanted))
