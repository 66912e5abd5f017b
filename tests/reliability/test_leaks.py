"""No test subject is used in training: not under another name, nor through weights, splits or outdated files."""

import json
import shutil

import h5py
import nibabel
import numpy as np
import pytest
from nibabel import orientations

from data.identity import CURE, content_hash, hashes_of_subject, refuse_same_scans
from tests.bad_input.harness import assert_refused, run
from tests.cohort import AFFINE, FIRST_FOUR, volumes, write_cohort, write_config
from utils.checks import InputError

pytestmark = pytest.mark.usefixtures("uncompiled")
SPLITS = {"train": ["sub-1"], "val": ["sub-2"], "test": ["sub-3"]}


@pytest.fixture
def work(finished, tmp_path):
    """Return a copy of the work dir to damage."""
    shutil.copytree(finished / "work", tmp_path / "work")
    return tmp_path / "work"


def command(finished, work):
    return ["--config", finished / "tiny.yaml", "--work-dir", work]


def copy_scan(folder, source, target, code="LPS"):
    """Store the scan of one subject under the name of another, with other axes and compressed again."""
    for path in (folder / "data" / source).iterdir():
        image = nibabel.load(path)
        start = orientations.axcodes2ornt(nibabel.aff2axcodes(image.affine))
        turn = orientations.ornt_transform(start, orientations.axcodes2ornt(code))
        (folder / "data" / target).mkdir(exist_ok=True)
        nibabel.save(image.as_reoriented(turn), folder / "data" / target / path.name)


def change_weights(path, **metadata):
    """Change the metadata of a weight file; None removes a key."""
    with np.load(path) as content:
        arrays = {name: content[name] for name in content.files}
    kept = json.loads(str(arrays["metadata"])) | metadata
    arrays["metadata"] = np.array(json.dumps({key: value for key, value in kept.items() if value is not None}))
    np.savez(path, **arrays)


def change_hashes(path, change):
    """Change the hashes in a store, `{subject: hashes}`; None: as in files from before hashes were written."""
    with h5py.File(path, "r+") as file:
        subjects = [name.decode() for name in file.attrs["subjects"]]
        hashes = {name: json.loads(line) for name, line in zip(subjects, file["subject_hashes"][:], strict=True)}
        del file["subject_hashes"]
        if (changed := change(hashes)) is not None:
            file["subject_hashes"] = [json.dumps(changed[name]) for name in subjects]


def hashes_in(path):
    with h5py.File(path) as file:
        names = [name.decode() for name in file.attrs["subjects"]]
        return dict(zip(names, map(json.loads, file["subject_hashes"][:]), strict=True))


def test_a_hash_tells_values_and_shapes_apart_but_not_copies():
    one = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    assert content_hash(one) == content_hash(one.copy(order="F")) and len(content_hash(one)) == 16
    others = [one[::-1], one.reshape(5, 4, 6), one + np.float32(1e-6), one.astype(np.float64)]
    assert len({content_hash(values) for values in (one, *others)}) == 5
    for constant in (np.zeros((2, 3)), np.full(4, 7.0), np.zeros((0, 2))):
        assert content_hash(constant) is None


def test_hashes_do_not_depend_on_the_order_of_axes():
    volume = np.random.default_rng(0).normal(size=(4, 5, 6, 2)).astype(np.float32)
    upright = hashes_of_subject(volume, ["t1", "t2"], np.eye(4), volume[..., 0] > 0, {None: volume[..., 1] > 1})
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 3
    turned = hashes_of_subject(
        volume[::-1], ["t1", "t2"], flipped, volume[::-1, ..., 0] > 0, {None: volume[::-1, ..., 1] > 1}
    )
    assert turned == upright and upright["images"]["t1"] != upright["images"]["t2"]
    empty = hashes_of_subject(np.zeros((2, 2, 2, 1)), ["t1"], np.eye(4))
    assert empty == {"images": {}, "maps": {}}


def test_one_scan_under_two_names_in_two_sets_is_refused(tmp_path):
    config = write_cohort(tmp_path)
    shutil.rmtree(tmp_path / "data" / "sub-3")
    copy_scan(tmp_path, "sub-1", "sub-3")
    assert run(FIRST_FOUR[0], "--config", config).code == 0
    outcome = run(FIRST_FOUR[1], "--config", config)
    files = [tmp_path / "data" / subject / "t1.nii.gz" for subject in ("sub-1", "sub-3")]
    assert outcome.said == [
        f"sub-1 (train, '{files[0]}') and sub-3 (test, '{files[1]}'): one scan under two names (the same voxels in "
        "'t1', 't2'); remove one of them from the data, or put both into one set"
    ]
    assert outcome.code == 2 and not list((tmp_path / "work" / "h5").glob("*.h5"))
    assert not list((tmp_path / "work").rglob(".tmp*"))


def test_one_scan_twice_in_a_set_is_a_warning(tmp_path):
    write_cohort(tmp_path)
    copy_scan(tmp_path, "sub-1", "sub-4")
    data = {
        "root": str(tmp_path / "data"),
        "contrasts": {"t1": "{subject}/t1.nii.gz"},
        "splits": SPLITS | {"train": ["sub-1", "sub-4"]},
    }
    config = write_config(tmp_path, data=data, constraint_maps=None, pretraining=None, finetuning=None)
    outcome = run(FIRST_FOUR[1], "--config", config)
    assert outcome.code == 0
    files = [tmp_path / "data" / subject / "t1.nii.gz" for subject in ("sub-1", "sub-4")]
    both = f"sub-1 (train, '{files[0]}') and sub-4 (train, '{files[1]}')"
    assert f"{both}: one scan under two names (the same voxels in 't1'); it counts twice in the set" in outcome.logged


def test_contrasts_without_content_are_no_persons(caplog):
    hashes = {name: hashes_of_subject(np.zeros((3, 3, 3, 1)), ["t1"], np.eye(4)) for name in ("a", "b")}
    refuse_same_scans({"train": ["a"], "test": ["b"]}, hashes)
    assert not caplog.records


def test_a_series_names_its_file():
    from data.layouts.subjects import SubjectFiles

    hashes = {name: {"images": {"echoes_2": "0" * 16}} for name in ("a", "b")}
    files = {name: SubjectFiles(name, {"echoes": f"{name}.nii"}) for name in hashes}
    with pytest.raises(InputError, match=r"^a \(train, 'a.nii'\) and b \(val, 'b.nii'\): one scan .* in 'echoes_2'\)"):
        refuse_same_scans({"train": ["a"], "val": ["b"]}, hashes, files)


def test_step_3_refuses_a_scan_in_both_files(finished, work):
    theirs = hashes_in(work / "h5" / "pretrain_train.h5")["sub-1"]
    change_hashes(work / "h5" / "pretrain_val.h5", lambda hashes: {"sub-2": theirs})
    line = f"sub-1 (train) and sub-2 (val): one scan under two names (the same voxels in 't1', 't2'); {CURE}"
    assert_refused(work, FIRST_FOUR[2], command(finished, work), [line])


def test_step_4_refuses_a_scan_in_two_sets(finished, work):
    theirs = hashes_in(work / "h5" / "annotated.h5")["sub-2"]
    change_hashes(work / "h5" / "annotated.h5", lambda hashes: hashes | {"sub-3": theirs})
    outcome = run(FIRST_FOUR[3], *command(finished, work))
    assert outcome.code == 2 and outcome.said[0].startswith("sub-2 (val, '") and "sub-3 (test, '" in outcome.said[0]


def test_weights_that_saw_a_test_scan_under_another_name_are_refused(finished, work):
    weights = work / "pretraining" / "global" / "weights.npz"
    digest = hashes_in(work / "h5" / "annotated.h5")["sub-3"]["images"]["t2"]
    change_weights(weights, seen_scans={digest: "someone"})
    what = "sub-3: test subject, but 'global' was pretrained on the same scan under the name someone"
    line = f"{what}; take it out of the test set, or pretrain without it"
    assert_refused(work, FIRST_FOUR[3], command(finished, work), [line])


def test_weights_of_another_split_are_refused(finished, work):
    weights = work / "pretraining" / "global" / "weights.npz"
    change_weights(weights, split_hash="0" * 12)
    assert_refused(
        work,
        FIRST_FOUR[3],
        command(finished, work),
        [f"{weights}: made with another split; run step 3 again with --overwrite"],
    )


CHANGED = {"images": {"t1": "0" * 16}}


def test_what_was_made_from_other_scans_is_refused(finished, work):
    for name in ("pretrain_train", "annotated"):
        change_hashes(work / "h5" / f"{name}.h5", lambda hashes: hashes | {"sub-1": CHANGED})
    cure = "give --overwrite, or another --work-dir"
    assert_refused(
        work, FIRST_FOUR[2], command(finished, work), [f"{work}/pretraining/global: made from other scans; {cure}"]
    )
    cell = work / "finetuning" / "t1" / "random" / "n01" / "r0"
    assert_refused(work, FIRST_FOUR[3], command(finished, work), [f"{cell}: made from other scans; {cure}"])


def test_a_corrected_label_is_another_scan_for_step_4_only(finished, work):
    for name in ("pretrain_train", "annotated"):
        change_hashes(
            work / "h5" / f"{name}.h5", lambda hashes: hashes | {"sub-1": hashes["sub-1"] | {"label": "0" * 16}}
        )
    assert run(FIRST_FOUR[3], *command(finished, work)).code == 2


def test_an_earlier_stage_from_other_scans_is_no_start(finished, work):
    change_weights(work / "pretraining" / "global" / "weights.npz", scans="0" * 12)
    training = "{epochs: 1, batch_size: 2, learning_rate: 0.001}"
    stages = f"pretraining.stages.second={{method: regression, warm_start: global, training: {training}}}"
    words = [*command(finished, work), "--set", stages, "--method", "second"]
    weights = work / "pretraining" / "global" / "weights.npz"
    assert_refused(
        work,
        FIRST_FOUR[2],
        words,
        [f"warm_start: {weights} was made from other scans; run stage 'global' with --overwrite"],
    )


def test_weights_pass_on_what_they_saw_before(finished, work):
    """A stage that starts from other weights has seen everything that those had seen."""
    source = work.parent / "elsewhere.npz"
    shutil.copy(work / "pretraining" / "global" / "weights.npz", source)
    change_weights(source, seen=["sub-3"], seen_scans={"1" * 16: "sub-3"}, subjects={"train": ["x"]})
    start = "pretraining.stages.global.warm_start=" + str(source)
    words = [*command(finished, work), "--set", start]
    assert run(FIRST_FOUR[2], *words, "--overwrite").code == 0
    outcome = run(FIRST_FOUR[3], *words, "--overwrite")
    assert "sub-3: test subject, but 'global' was pretrained on it" in outcome.said and outcome.code == 2


def test_model_and_metrics_name_the_split(finished):
    cells = list((finished / "work" / "finetuning").rglob("metrics.json"))
    hashes = {
        json.loads((cell.parent / name).read_text())["split_hash"]
        for cell in cells
        for name in ("metrics.json", "model.json")
    }
    with np.load(finished / "work" / "pretraining" / "global" / "weights.npz") as content:
        hashes.add(json.loads(str(content["metadata"]))["split_hash"])
    assert len(cells) == 2 and len(hashes) == 1


SPOILED = [
    (lambda m: m["per_subject"][0].update(dice=7), "dice of sub-3 is 7, expected 0 to 1"),
    (lambda m: m["per_subject"][0].update(surface_dice=-0.5), "surface_dice of sub-3 is -0.5, expected 0 to 1"),
    (lambda m: m["per_subject"][0].update(hd95_mm=-1), "hd95_mm of sub-3 is -1, expected 0 to inf"),
    (lambda m: m["per_subject"][0].update(volume_ml=-3.5), "volume_ml of sub-3 is -3.5, expected 0 to inf"),
    (lambda m: m.update(train_subjects=["sub-3"]), "sub-3 is tested and among train_subjects"),
    (lambda m: m.update(validation_subjects=["sub-2", "sub-3"]), "sub-3 is tested and among validation_subjects"),
]


@pytest.mark.parametrize(("spoil", "problem"), SPOILED, ids=[problem[:20] for _, problem in SPOILED])
def test_step_5_refuses_what_cannot_be(spoil, problem, finished, work):
    path = work / "finetuning" / "t1" / "random" / "n01" / "r0" / "metrics.json"
    metrics = json.loads(path.read_text())
    spoil(metrics)
    path.write_text(json.dumps(metrics))
    line = f"{path}: {problem}; delete the cell's folder and run step 4 again"
    assert_refused(work, "reproduce_tables", command(finished, work), [line])


def test_step_5_refuses_cells_of_different_splits(finished, work):
    path = work / "finetuning" / "t1" / "random" / "n01" / "r0" / "metrics.json"
    metrics = json.loads(path.read_text())
    ours = metrics["split_hash"]
    path.write_text(json.dumps(metrics | {"split_hash": "0" * 12}))
    other = work / "finetuning" / "t1" / "global" / "n01" / "r0"
    found = f"{ours} in {other}; {'0' * 12} in {path.parent}"
    cure = "delete the outdated folders or run step 4 with --overwrite"
    line = f"{work}: cells made with different splits ({found}); {cure}"
    assert_refused(work, "reproduce_tables", command(finished, work), [line])


def test_the_cohort_of_these_tests_has_three_scans():
    assert len({content_hash(volumes(seed)["t1"]) for seed in range(3)}) == 3 and AFFINE.shape == (4, 4)
