"""Step 3: the images and maps that reach training, and single-channel networks up to step 4."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import constrained_contrastive_learning as script
import finetune_segmentation
import generate_h5_pretraining
from data.scans.volumes import write_nifti
from data.store.store import SliceStore
from models.weights import read_weights
from training import pretraining
from training.loop import RunOptions
from utils.checks import InputError
from utils.config.load import load_config

SUBJECTS = [f"sub-{number}" for number in range(1, 7)]
SPLIT = {"train": SUBJECTS[:3], "val": SUBJECTS[3:4], "test": SUBJECTS[4:]}
pytestmark = pytest.mark.usefixtures("uncompiled")
RUN = RunOptions(Path("nowhere"), "tag", "stage", seed=1)
SHAPE, AFFINE = (16, 16, 6), np.diag([-3.0, -3.0, 5.0, 1.0])


def make_config(folder, **pretraining_section):
    training = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4, "learning_rate": 1e-3}
    content = {
        "name": "tiny",
        "seed": 3,
        "work_dir": str(folder / "work"),
        "data": {
            "root": str(folder / "scans"),
            "contrasts": {name: f"{{subject}}/{name}.nii.gz" for name in ("t1", "t2", "flair")},
            "label": "{subject}/label.nii.gz",
            "labels": {"organ": [1]},
            "splits": SPLIT,
        },
        "constraint_maps": {"contrasts": ["t1", "t2"], "clusters": 3, "spaces": {"late": ["t2", "flair"]}},
        "slices": {"image_size": [16, 16]},
        "network": {"filters": [4, 8, 8]},
        "pretraining": {
            "contrasts": ["flair", "t1"],
            "stages": {
                "regression": {"method": "regression", "training": dict(training)},
                "anatomical": {"method": "global", "n_partitions": 2, "training": dict(training)},
                "local": {"method": "local", "warm_start": "anatomical", "training": dict(training)},
                "constrained": {"method": "constrained", "warm_start": "anatomical", "training": dict(training)},
                "late": {"method": "constrained", "space": "late", "training": dict(training)},
            },
            **pretraining_section,
        },
        "finetuning": {
            "contrasts": {"t2": ["t2"]},
            "inits": ["late"],
            "subjects_n": [2],
            "repeats": 1,
            "training": training,
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Return scans, maps of two contrast spaces and their packed slices."""
    folder, generator = tmp_path_factory.mktemp("step3"), np.random.default_rng(0)
    for subject in SUBJECTS:
        label = np.zeros(SHAPE, np.uint8)
        label[5:9, 6:11, 1:5] = 1
        body = np.pad(np.ones((12, 12, SHAPE[2])), ((2, 2), (2, 2), (0, 0)))
        for name in ("t1", "t2", "flair"):
            image = body * generator.uniform(200, 400, SHAPE) + 300.0 * label + generator.uniform(0, 5, SHAPE)
            write_nifti(folder / "scans" / subject / f"{name}.nii.gz", image.astype(np.float32), AFFINE)
        write_nifti(folder / "scans" / subject / "label.nii.gz", label, AFFINE)
        for space in ("", "late"):
            maps = (body * generator.integers(1, 4, SHAPE)).astype(np.uint8)
            write_nifti(folder / "work" / "constraint_maps" / space / f"{subject}.nii.gz", maps, AFFINE)
    path = make_config(folder)
    generate_h5_pretraining.main(["--config", str(path)])
    return folder


@pytest.fixture
def given(packed, monkeypatch):
    """Return a function that runs a stage up to its training, and returns the arguments of the training function."""
    calls = {}

    def record(method):
        def pretrain(*told):
            calls[method] = told
            raise InputError("recorded")

        return pretrain

    for method in ("regression", "global", "local", "constrained"):
        monkeypatch.setattr(pretraining, f"pretrain_{method}", record(method))

    def run(stage, contrasts_as, *overrides):
        config = load_config(make_config(packed, contrasts_as=contrasts_as), overrides)
        stores = script.open_stores(config, config.work)
        with pytest.raises(InputError, match="recorded"):
            script.train(config, config.pretraining.stages[stage], stores, ["flair", "t1"], RUN)
        return calls[config.pretraining.stages[stage].method]

    return run


def stores_of(packed):
    return [SliceStore(packed / "work" / "h5" / f"pretrain_{part}.h5") for part in ("train", "val")]


@pytest.mark.parametrize("stage", ["regression", "anatomical", "local"])
def test_one_by_one_every_slice_is_shown_once_in_every_contrast(packed, given, stage):
    *sets, setup = given(stage, "samples")
    for number, ((images, _, places), store) in enumerate(zip(sets[:2], stores_of(packed), strict=True)):
        whole = store.images(["flair", "t1"])
        assert images.shape == (2 * len(store), 16, 16, 1)
        for place in range(2 * len(store)):
            contrast, row = divmod(place, len(store))
            np.testing.assert_array_equal(images[place, ..., 0], whole[row, ..., contrast])
        if stage == "anatomical":
            volumes, slices = places
            for place in range(2 * len(store)):
                contrast, row = divmod(place, len(store))
                subject = store.subjects[store.subject_index[row]]
                assert volumes[place] == f"{subject}, {['flair', 't1'][contrast]}"
                assert slices[place] == store.slice_index[row]
                assert setup.run.subjects[number][place] == subject


@pytest.mark.parametrize(("words", "edge"), [([], None), (["block_mm=5"], 2), (["block_px=3"], 3)])
def test_the_edge_of_blocks_reaches_the_method_in_pixels(packed, monkeypatch, words, edge):
    given = {}
    record = lambda *sets: given.update(corruption=sets[2])  # noqa: E731
    monkeypatch.setattr(pretraining, "pretrain_regression", record)
    words = ["slices.pixel_size=2.5", *(f"pretraining.stages.regression.{word}" for word in words)]
    config, stores = (
        load_config(make_config(packed), words),
        dict(zip(("train", "val"), stores_of(packed), strict=True)),
    )
    script.train(config, config.pretraining.stages["regression"], stores, ["flair", "t1"], RUN)
    assert given["corruption"].block_px == edge


@pytest.mark.parametrize(("stage", "space"), [("constrained", None), ("late", "late")])
@pytest.mark.parametrize("contrasts_as", ["channels", "samples"])
def test_the_maps_are_those_of_the_stages_contrast_space(packed, given, stage, space, contrasts_as):
    sets = given(stage, contrasts_as)[:2]
    copies = 2 if contrasts_as == "samples" else 1
    for (images, maps, _), store in zip(sets, stores_of(packed), strict=True):
        assert len(images) == copies * len(store) and images.shape[-1] == 3 - copies
        np.testing.assert_array_equal(maps, store.constraint_maps(space=space))


def test_as_channels_nothing_has_changed(packed, given):
    sets = given("anatomical", "channels")[:2]
    for (images, _, _), store in zip(sets, stores_of(packed), strict=True):
        np.testing.assert_array_equal(images, store.images(["flair", "t1"]))
    volumes, slices = sets[0].places
    assert set(volumes) == set(SPLIT["train"]) and len(volumes) == len(slices) == len(sets[0].images)


def test_a_network_of_one_channel_goes_through_to_step_4(packed, caplog):
    caplog.set_level("INFO", "mrccl")
    words = ["--config", str(make_config(packed, contrasts_as="samples"))]
    script.main([*words, "--method", "late"])
    arrays, metadata = read_weights(packed / "work" / "pretraining" / "late" / "weights.npz")
    assert arrays["encoder_1_conv_1/kernel"].shape == (3, 3, 1, 4)
    assert metadata["contrasts"] is None and metadata["contrasts_one_by_one"] == ["flair", "t1"]
    assert finetune_segmentation.main(words) == 0
    cell = packed / "work" / "finetuning" / "t2" / "late" / "n02" / "r0"
    assert len(json.loads((cell / "metrics.json").read_text())["per_subject"]) == 2
    [moved] = {line for line in caplog.messages if "layers moved" in line}
    assert "left as initialised: segmentation_conv" in moved and "adapted" not in moved


VOLUMES = ["network.rank=3", "crops={size: [8, 12, 4], min_foreground: 0.5, validation: 3}", "finetuning=null"]
VOLUMES += ["pretraining.stages.anatomical={method: global, training: {epochs: 1, batch_size: 4, learning_rate: 1e-3}}"]


@pytest.mark.parametrize("stage", ["regression", "anatomical", "local", "constrained", "late"])
@pytest.mark.parametrize("remat", [False, True])
def test_networks_of_rank_3_are_shown_crops_of_the_volumes_and_maps_of_the_stages_space(packed, given, stage, remat):
    *sets, setup = given(stage, "channels", *VOLUMES, f"network.remat={remat}")
    assert setup.remat is remat
    for (crops, maps, places), store in zip(sets[:2], stores_of(packed), strict=True):
        assert maps is places is None
        assert [volume.subject for volume in crops.volumes] == store.subjects
        assert crops.shape == (len(store.subjects), 8, 12, 4, 2) and crops.inputs == ["flair", "t1"]
        assert crops.space == ("late" if stage == "late" else None) and not crops.targets
        assert (crops.min_foreground, crops.per_volume) == (0.5, 3)
        rows = store.rows_of([store.subjects[-1]])
        region = (slice(2, 14), slice(3, 11), slice(1, 5))
        whole, maps = store.images(["flair", "t1"], rows), store.constraint_maps(rows, crops.space)
        volume = crops.volumes[-1]
        np.testing.assert_array_equal(volume[region], np.moveaxis(whole[1:5, 2:14, 3:11], 0, 2))
        shown = volume.constraint_map(region, crops.space)
        np.testing.assert_array_equal(shown, np.moveaxis(maps[1:5, 2:14, 3:11], 0, 2))


def test_a_crop_deeper_than_a_run_of_packed_slices_is_refused(packed, given):
    config = load_config(make_config(packed), [*VOLUMES, "crops.size=[8, 12, 8]"])
    with pytest.raises(InputError, match=r"sub-1: a crop of \(8, 12, 8\) does not fit into \(16, 16\) pixels and 6"):
        stores = script.open_stores(config, config.work)
        script.train(config, config.pretraining.stages["regression"], stores, ["flair"], RUN)


def test_a_constrained_stage_without_constraint_maps_is_a_mistake(packed):
    without = ["--set", "constraint_maps=null", "pretraining.stages.late.space=null"]
    with pytest.raises(
        InputError, match="pretraining.stages.constrained: a constrained stage needs the section 'constraint_maps:'"
    ):
        script.main(["--config", str(make_config(packed)), *without, "--method", "regression"])
