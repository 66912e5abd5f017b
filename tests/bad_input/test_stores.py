"""HDF5 files that contradict the config or the schema, in steps 2, 3 and 4."""

import json
import os
import shutil

import h5py
import numpy as np
import pytest

from data.store.store import SliceStore
from tests.bad_input.harness import assert_refused, listing, run
from tests.cohort import write_config
from utils.checks import InputError

AGAIN = "make it again with generate_h5_pretraining.py --overwrite, or give another --work-dir"
OTHER_GRID = {"shape": [9, 9, 4], "affine": np.eye(4).tolist(), "pixel_size": None, "image_size": [8, 8]}


@pytest.fixture
def cohort(packed, tmp_path):
    """Return a copy of the packed cohort to damage; the config names the work dir at its new place."""
    shutil.copytree(packed, tmp_path / "copy")
    write_config(tmp_path / "copy")
    return tmp_path / "copy"


def replace(name, values, **options):
    def spoil(file):
        del file[name]
        file.create_dataset(name, data=values, **options)

    return spoil


def resize(length):
    def spoil(file):
        for name in ("img", "param", "subject_index", "slice_index"):
            file[name].resize(length, axis=0)

    return spoil


def link(kind):
    def spoil(file):
        del file["img"]
        file["img"] = kind

    return spoil


def view_of_another_file(file):
    layout = h5py.VirtualLayout((4, 16, 16, 2), "f2")
    layout[:] = h5py.VirtualSource("other.h5", "img", (4, 16, 16, 2))
    del file["img"]
    file.create_virtual_dataset("img", layout)


def entry(name, place, value):
    def spoil(file):
        file[name][place] = value

    return spoil


def attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def without(name):
    return lambda file: file.__delitem__(name)


BROKEN = f"{{path}}: not a complete HDF5 store (<reason>); {AGAIN}"
INSIDE = {
    "another schema version": (attribute("schema_version", 2), f"{{path}}: schema version 2, expected 1; {AGAIN}"),
    "version as text": (attribute("schema_version", "1"), f"{{path}}: schema version '1', expected 1; {AGAIN}"),
    "no version": (
        lambda file: file.attrs.__delitem__("schema_version"),
        f"{{path}}: schema version None, expected 1; {AGAIN}",
    ),
    "no img": (without("img"), "no dataset 'img'"),
    "no param": (without("param"), "no dataset 'param'"),
    "no subject_index": (without("subject_index"), "no dataset 'subject_index'"),
    "no grids": (without("subject_grid"), "no dataset 'subject_grid'"),
    "img of integers": (replace("img", np.ones((4, 16, 16, 2), np.int8)), "img holds int8 values, expected floats"),
    "img of texts": (replace("img", np.full((4, 16, 16, 2), b"x")), "img holds |S1 values, expected floats"),
    "img of one number": (replace("img", 3.0), "img is (), expected 4 axes"),
    "img of another size": (
        replace("img", np.ones((4, 16, 16, 3), np.float16)),
        "img is (4, 16, 16, 3), expected (4, 16, 16, 2)",
    ),
    "group instead of img": (
        lambda file: (file.__delitem__("img"), file.create_group("img")),
        "'img' is not a dataset of this file",
    ),
    "img in another file": (link(h5py.ExternalLink("other.h5", "/img")), "'img' is not a dataset of this file"),
    "link in a circle": (link(h5py.SoftLink("/img")), "'img' is not a dataset of this file"),
    "view of another file": (view_of_another_file, "'img' is not a dataset of this file"),
    "param of floats": (
        replace("param", np.ones((4, 16, 16, 1), np.float32)),
        "param holds float32 values, expected integers",
    ),
    "param of fewer slices": (
        replace("param", np.ones((3, 16, 16, 1), np.uint8)),
        "param is (3, 16, 16, 1), expected (4, 16, 16, 1)",
    ),
    "param of another size": (
        replace("param", np.ones((4, 8, 16, 1), np.uint8)),
        "param is (4, 8, 16, 1), expected (4, 16, 16, 1)",
    ),
    "param without its last axis": (
        replace("param", np.ones((4, 16, 16), np.uint8)),
        "param is (4, 16, 16), expected 4 axes",
    ),
    "slices never written": (resize(10**10), "img declares 10240000000000 bytes, the file holds <any>"),
    "slice of no subject": (entry("subject_index", 0, 9), "subject_index goes from 0 to 9, with 1 subjects"),
    "negative slice": (entry("slice_index", 0, -1), "slice_index goes from -1 to 3, with 1 subjects"),
    "names as one text": (attribute("contrasts", "t1"), "attribute 'contrasts' is not a list of strings"),
    "names as numbers": (attribute("subjects", [1]), "attribute 'subjects' is not a list of strings"),
    "a name twice": (attribute("contrasts", ["t1", "t1"]), "attribute 'contrasts' holds a name twice"),
    "more names than grids": (
        attribute("subjects", ["sub-1", "sub-9"]),
        "subject_grid is (1,), expected (2,), one text for each subject",
    ),
    "attribute cut off": (attribute("split", '{"train": ['), "Expecting value: line 1 column 12 (char 11)"),
    "nested without end": (attribute("split", "[" * 30_000), "maximum recursion depth exceeded <any>"),
    "grid cut off": (entry("subject_grid", 0, '{"shape": [1'), "Expecting ',' delimiter: line 1 column 13 (char 12)"),
    "grid without keys": (entry("subject_grid", 0, "{}"), "a grid needs shape, affine, pixel_size and image_size"),
    "grid of other slices": (
        entry("subject_grid", 0, json.dumps(OTHER_GRID)),
        "a grid makes slices of [8, 8], the file holds [16, 16]",
    ),
    "grid without space": (
        entry("subject_grid", 0, json.dumps(OTHER_GRID | {"affine": np.zeros((4, 4)).tolist()})),
        "the affine of a grid is not 4 x 4 finite numbers that span space",
    ),
}


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-5000])


OUTSIDE = {
    "truncated": (cut_off, "<any>truncated file<any>"),
    "zero size": (lambda path: path.write_bytes(b""), "<any>file signature not found<any>"),
    "text": (lambda path: path.write_text("HDF5"), "<any>file signature not found<any>"),
    "only the signature": (
        lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"),
        "Unable to synchronously open file<any>",
    ),
}


def expected_line(text):
    return text if text.startswith("{path}") else BROKEN.replace("<reason>", text)


@pytest.mark.parametrize("step", ["generate_h5_pretraining", "constrained_contrastive_learning"])
@pytest.mark.parametrize("name", [*INSIDE, *OUTSIDE])
def test_a_bad_file_is_refused(name, step, cohort):
    path = cohort / "work" / "h5" / "pretrain_train.h5"
    spoil, text = (INSIDE | OUTSIDE)[name]
    if name in INSIDE:
        with h5py.File(path, "a") as file:
            spoil(file)
    else:
        spoil(path)
    assert_refused(cohort, step, ["--config", cohort / "tiny.yaml"], [expected_line(text)], path=path)


@pytest.mark.parametrize("step", ["generate_h5_pretraining", "finetune_segmentation"])
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["slices.min_foreground=0.2"], f"{{path}}: made with another config; {AGAIN}"),
        (["data.labels={liver: [2], kidney: [1]}"], f"{{path}}: made with another labels; {AGAIN}"),
        (["seed=4"], f"{{path}}: made with another seed; {AGAIN}"),
    ],
    ids=["config", "labels", "seed"],
)
def test_the_file_of_another_config_is_refused(words, text, step, cohort):
    for name in ("pretrain_train", "pretrain_val"):  # so that the file for step 4 is read
        (cohort / "work" / "h5" / f"{name}.h5").unlink()
    shutil.rmtree(cohort / "work" / "constraint_maps")
    path = cohort / "work" / "h5" / "annotated.h5"
    assert_refused(cohort, step, ["--config", cohort / "tiny.yaml", "--set", *words], [text], path=path)


@pytest.mark.parametrize("step", ["generate_h5_pretraining", "finetune_segmentation"])
def test_a_folder_instead_of_the_file(step, cohort):
    path = cohort / "work" / "h5" / "annotated.h5"
    path.unlink()
    path.mkdir()
    text = "{path}: no such file; run generate_h5_pretraining.py first"
    assert_refused(cohort, step, ["--config", cohort / "tiny.yaml"], [text], path=path)


def test_classes_above_those_that_the_file_names_are_refused(cohort):
    path = cohort / "work" / "h5" / "annotated.h5"
    with h5py.File(path, "a") as file:
        file["label"][2, 3, 3] = 77
        file["param"][2, 3, 3] = 200
    store = SliceStore(path)
    with pytest.raises(InputError, match=r"annotated.h5: holds class 77, expected 0 to 2; make it again"):
        store.labels()
    with pytest.raises(InputError, match=r"annotated.h5: holds class 200, expected 0 to 3; make it again"):
        store.constraint_maps()
    assert store.labels([0]).shape == (1, 16, 16)


def test_a_file_that_became_shorter_while_it_was_open_is_refused(cohort):
    store = SliceStore(path := cohort / "work" / "h5" / "annotated.h5")
    store.images(rows=[0])
    os.truncate(path, 4000)
    with pytest.raises(InputError, match="annotated.h5: .*make it again"):
        store.images()


def test_overwrite_repairs_all_of_them(cohort):
    cut_off(cohort / "work" / "h5" / "pretrain_train.h5")
    (cohort / "work" / "h5" / "annotated.h5").write_text("HDF5")
    assert run("generate_h5_pretraining", "--config", cohort / "tiny.yaml", "--overwrite").code == 0
    assert len(SliceStore(cohort / "work" / "h5" / "pretrain_train.h5")) == 4
    assert not [path for path in listing(cohort) if ".tmp" in path]
