"""predict.py with plain folders, nnU-Net and Decathlon files; its messages name no config keys."""

import csv
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

from data.scans.volumes import write_nifti
from tests.bad_input.harness import ROOT, listing, messages_of, run
from tests.test_predict_segmentation import AFFINE, BIDS, SHAPE, write_model, write_scan
from utils.words_of_predict import for_prediction

pytestmark = pytest.mark.usefixtures("uncompiled")

LAYOUTS = {
    "pattern": {},
    "brats": {"layout": "brats", "files": {"t1": "t1"}},
    "msd": {"layout": "msd", "files": {"t1": "T1"}},
    "nnunet": {"layout": "nnunet", "files": {"t1": "T1"}},
    "bids": BIDS,
    "chaos": {"layout": "chaos", "files": {"t1": "t1in"}},
    "renal": {"layout": "renal", "files": {"t1": "t1"}},
}
KEY = re.compile(r"(?<![\w/'.-])(data|slices|finetuning|synthesis|network)\.[a-z_]+(?![/\w])|volumes: n|--work-dir")


def predict(folder, *words, given="scans", out="out"):
    return run("predict", "--model", folder / "model", "--input", folder / given, "--output", folder / out, *words)


def subjects(folder):
    with (folder / "out/volumes.csv").open(newline="") as file:
        return {row["subject"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_file_of_a_plain_folder_is_a_scan_named_after_its_file(tmp_path, layout):
    write_model(tmp_path / "model", **LAYOUTS[layout])
    write_scan(tmp_path / "scans/first.nii.gz", 1)
    write_scan(tmp_path / "scans/second scan.nii", 2)
    write_scan(tmp_path / "scans/._first.nii.gz", 2)
    (tmp_path / "scans/notes.txt").write_text("note")
    (tmp_path / "scans/old").mkdir()
    outcome = predict(tmp_path)
    assert outcome.code == 0, outcome.said
    assert {path.name for path in (tmp_path / "out").glob("*.nii*")} == {"first.nii.gz", "second scan.nii.gz"}
    assert subjects(tmp_path) == {"first", "second scan"}
    told = (
        f"--input {tmp_path}/scans: taken as a plain folder of scans; ignored, because they are not scans: "
        "notes.txt, old"
    )
    assert told in outcome.logged
    predict(tmp_path, given="scans/first.nii.gz", out="alone.nii.gz")
    pair = [nibabel.load(tmp_path / name).get_fdata() for name in ("alone.nii.gz", "out/first.nii.gz")]
    np.testing.assert_array_equal(*pair)


def test_names_that_the_model_knows_come_first(tmp_path):
    write_model(tmp_path / "model")
    write_scan(tmp_path / "scans/sub-1/t1.nii.gz")
    write_scan(tmp_path / "scans/other.nii.gz")
    assert predict(tmp_path).code == 0 and subjects(tmp_path) == {"sub-1"}


def label_map(path):
    write_nifti(path, (np.indices(SHAPE).sum(0) % 3).astype(np.uint8), AFFINE)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (
            lambda scans: write_scan(scans / "A.nii.gz"),
            "--input {}: A.nii.gz and a.nii.gz would have results of one name",
        ),
        (lambda scans: write_scan(scans / "a.nii"), "a: 'a.nii.gz' lies beside '{}/a.nii'; keep the one that holds"),
        (lambda scans: (scans / "b.nii.gz").symlink_to("nowhere"), "b: '{}/b.nii.gz' is a link to 'nowhere', which"),
        (lambda scans: (scans / "b.nii.gz").mkdir(), "b: '{}/b.nii.gz' is a folder; put the scan in its place"),
        (lambda scans: (scans / "b.nii.gz").write_text(""), "b: '{}/b.nii.gz' is empty (0 bytes); copy or export it"),
        (
            lambda scans: label_map(scans / "a_seg.nii.gz"),
            "a_seg: '{}/a_seg.nii.gz' holds only 3 different whole numbers",
        ),
    ],
)
def test_files_that_cannot_be_meant_are_refused(tmp_path, spoil, line):
    write_model(tmp_path / "model")
    write_scan(tmp_path / "scans/a.nii.gz")
    spoil(tmp_path / "scans")
    outcome = predict(tmp_path)
    assert outcome.code == 2 and not (tmp_path / "out").exists()
    assert outcome.said[0].startswith(line.format(tmp_path / "scans")), outcome.said


def test_scans_are_not_written_over(tmp_path):
    write_model(tmp_path / "model")
    write_scan(tmp_path / "scans/a.nii.gz")
    before = listing(tmp_path)
    outcome = predict(tmp_path, out="scans")
    assert outcome.said == [f"--output {tmp_path}/scans: is the folder of the scans; give another one"]
    assert listing(tmp_path) == before


@pytest.mark.parametrize("changes", [{"mask": "{subject}/m.nii.gz"}, {"contrasts": ["t1", "t2"]}])
def test_a_model_that_needs_several_files_names_them(tmp_path, changes):
    write_model(tmp_path / "model", **changes)
    write_scan(tmp_path / "scans/a.nii.gz")
    outcome = predict(tmp_path)
    assert outcome.code == 2 and outcome.said[0].startswith(
        f"--input: no file below '{tmp_path}/scans' matches '{{subj"
    )
    assert not KEY.search(outcome.said[0])


def nnunet(folder, channels=("0000",), about=None):
    write_model(folder / "model", **LAYOUTS["nnunet"])
    for number, channel in enumerate(channels):
        write_scan(folder / f"scans/case_{channel}.nii.gz", number)
    if about:
        (folder / about).write_text(json.dumps({"channel_names": {"0": "T2", "1": "T1"}}))


def test_files_of_nnunet_lose_the_number_of_their_channel(tmp_path):
    nnunet(tmp_path)
    assert predict(tmp_path).code == 0 and subjects(tmp_path) == {"case"}


def test_of_several_channels_the_one_of_the_model_is_taken(tmp_path):
    nnunet(tmp_path, ("0000", "0001"))
    outcome = predict(tmp_path)
    assert outcome.code == 2 and "holds the channels 0000, 0001, of which the model needs 't1'" in outcome.said[0]
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T2", "1": "T1"}}))  # above imagesTs
    assert predict(tmp_path).code == 0 and subjects(tmp_path) == {"case"}
    predict(tmp_path, given="scans/case_0001.nii.gz", out="alone.nii.gz")
    pair = [nibabel.load(tmp_path / name).get_fdata() for name in ("alone.nii.gz", "out/case.nii.gz")]
    np.testing.assert_array_equal(*pair)


def decathlon(folder, **changes):
    """Return a model of the second of two volumes, its 4D file, and each volume alone."""
    write_model(folder / "model", layout="msd", files={"t2": "T2", "t1": "T1"}, **changes)
    for number in (0, 1):
        write_scan(folder / f"{number}.nii.gz", number)
    both = np.stack([nibabel.load(folder / f"{number}.nii.gz").get_fdata() for number in (0, 1)], -1)
    write_nifti(folder / "scans/x_08.nii.gz", both.astype(np.float32), AFFINE)


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("given", ["scans", "scans/x_08.nii.gz"])
def test_of_a_decathlon_file_the_volume_of_the_model_is_taken(tmp_path, noted, given):
    decathlon(tmp_path, **({"volumes": {"t1": [1, 2]}} if noted else {}))
    out = "out/x_08.nii.gz" if given.endswith("gz") else "out"
    if not noted:
        outcome = predict(tmp_path, given=given, out=out)
        line = f"x_08: '{tmp_path}/scans/x_08.nii.gz' holds 2 volumes, of which the model needs 't1', and neither "
        assert outcome.code == 2 and outcome.said[0].startswith(line)
        (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "T2", "1": "T1"}}))
    assert predict(tmp_path, given=given, out=out).code == 0
    predict(tmp_path, given="1.nii.gz", out="alone.nii.gz")
    pair = [nibabel.load(tmp_path / name).get_fdata() for name in ("alone.nii.gz", "out/x_08.nii.gz")]
    np.testing.assert_array_equal(*pair)


def test_a_decathlon_file_of_other_volumes_is_refused(tmp_path):
    decathlon(tmp_path, volumes={"t1": [2, 4]})
    outcome = predict(tmp_path)
    cure = "give the volume that the model was trained on as a 3D file"
    assert outcome.code == 2 and outcome.said[0].endswith(f"expected 4 axes, the last of 4 volumes; {cure}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("given", ["empty", "other", "series"])
def test_messages_of_predict_name_no_key_of_a_config(tmp_path, layout, given):
    write_model(tmp_path / "model", **LAYOUTS[layout])
    (tmp_path / "empty").mkdir()
    (tmp_path / "other/anything").mkdir(parents=True)
    write_nifti(tmp_path / "series/a.nii.gz", np.random.default_rng(0).random((8, 8, 3, 4)), AFFINE)
    outcome = predict(tmp_path, given=given)
    assert outcome.code == 2 and outcome.said
    assert not [line for line in outcome.said if KEY.search(line)], outcome.said


SHARED = ["data/layouts/*.py", "data/scans/*.py", "data/intensity.py", "data/derivatives.py"]
SHARED += ["evaluation/prediction/*.py", "models/unet.py", "models/weights.py", "models/portable.py", "predict.py"]


def test_every_message_that_steps_and_predict_share_is_said_without_keys():
    files = [path for pattern in SHARED for path in Path(ROOT).glob(pattern)]
    found = {text for path in files for text in messages_of(path) if KEY.search(text)}
    assert len(found) > 10
    labels = {text for text in found if "data.label" in text or "ignored_label" in text}  # not read by this script
    assert not [text for text in found - labels if KEY.search(for_prediction(text))]


@pytest.mark.parametrize(
    "line", ["'/x/data.root/a.nii' is gone", "a: '/data/data.nii.gz' is empty", "'data.label.nii' is not a NIfTI file"]
)
def test_names_of_files_stay_as_they_are(line):
    assert for_prediction(line) == line


def test_a_model_whose_sizes_do_not_fit_is_described_without_keys(tmp_path):
    write_model(tmp_path / "model")
    content = json.loads((tmp_path / "model/model.json").read_text())
    content["slices"]["image_size"] = [23, 24]
    (tmp_path / "model/model.json").write_text(json.dumps(content))
    write_scan(tmp_path / "scans/a.nii.gz")
    outcome = predict(tmp_path)
    assert outcome.code == 2 and "filters of model.json" in outcome.said[0] and not KEY.search(outcome.said[0])
