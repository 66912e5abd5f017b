"""Representations of pretrained networks, from a simulated cohort to table and figure."""

import shutil

import numpy as np
import pandas
import pytest
import yaml

import generate_constraint_maps
import generate_h5_pretraining
import simulate_cohort
from data.splits import hash_of_split
from data.store.store import SliceStore
from models.unet import build_encoder, build_unet
from models.weights import save_weights
from tools import visualize_representations
from utils.checks import InputError
from utils.config.load import load_config

pytestmark = pytest.mark.usefixtures("rough_figures")
FILTERS = [8, 8, 8]
R2, ACCURACY, SILHOUETTE = "R²", "balanced accuracy", "silhouette"
TRIVIAL, NETWORKS = ["intensity", "intensity + position"], ["random", "global", "constrained"]


def make_config(folder):
    partial = {"decoder_levels": 1, "patch_size": 1}
    training = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3}
    content = {
        "name": "tiny",
        "seed": 5,
        "work_dir": str(folder / "work"),
        "data": {
            "root": str(folder / "scans"),
            "contrasts": {"t1w": "{subject}/t1w.nii.gz", "t2w": "{subject}/t2w.nii.gz"},
            "label": "{subject}/label.nii.gz",
            "labels": {"kidneys": [1, 2], "liver": [3], "spleen": [4]},
            "splits": "splits.json",
            "simulated": True,
        },
        "constraint_maps": {"contrasts": ["t1w", "t2w"], "clusters": 6},
        "slices": {"image_size": [40, 48]},
        "network": {"filters": FILTERS},
        "pretraining": {
            "contrasts": ["t1w"],
            "stages": {
                "global": {"method": "global", "training": dict(training)},
                "constrained": {"method": "constrained", **partial, "training": dict(training)},
                "later": {"method": "constrained", "training": training},
            },
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def write_weights(config, stage, network, **changes):
    split = SliceStore(config.work.store("pretrain_train")).attributes["split"]
    known = {"contrasts": ["t1w"], "seen": ["sub-001", "sub-002"], "config_hash": config.hash_of_stage(stage)}
    known |= {"split_hash": hash_of_split(split)}
    save_weights(network, config.work.stage_weights(stage), **known | changes)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Return a cohort of five subjects after step 2, with weights as from step 3: an encoder and a whole network."""
    folder = tmp_path_factory.mktemp("representations")
    simulate_cohort.main(["--out", str(folder / "scans"), "--subjects", "5", "--shape", "48", "40", "6"])
    path = make_config(folder)
    for step in (generate_constraint_maps, generate_h5_pretraining):
        step.main(["--config", str(path)])
    config = load_config(path)
    write_weights(config, "global", build_encoder((40, 48, 1), filters=FILTERS, head="projection", seed=1))
    network = build_unet((40, 48, 1), filters=FILTERS, decoder_levels=1, head="projection", seed=2)
    write_weights(config, "constrained", network)
    return path, config


@pytest.fixture(scope="module")
def finished(packed):
    """Return the cohort and the scores of all representations."""
    path, config = packed
    return path, config, run(path, config)


@pytest.fixture
def work(packed, tmp_path):
    """Return a copy of the work dir for one test."""
    path, config = packed
    shutil.copytree(config.work_dir, tmp_path / "work", ignore=shutil.ignore_patterns("report"))
    return path, load_config(path, work_dir=tmp_path / "work")


@pytest.fixture(autouse=True, scope="module")
def few_patches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visualize_representations, "SHOWN", 150)
        yield


@pytest.fixture
def without_tsne(monkeypatch):
    """Replace t-SNE by any plane in tests that ignore the picture; test_representations.py checks it."""
    monkeypatch.setattr("evaluation.probes.representations.embed", lambda values, seed: values[:, :2])


def run(path, config, *words):
    words = ("--only", "patches", *words)
    visualize_representations.main(["--config", str(path), "--work-dir", str(config.work_dir), *words])
    return pandas.read_csv(config.work_dir / "report" / "representations" / "probe.csv")


def test_every_representation_is_measured_on_the_same_patches(finished):
    _, config, scores = finished
    assert list(dict.fromkeys(scores["representation"])) == [*TRIVIAL, *NETWORKS]
    kinds = {(R2, "T1"), (R2, "T2"), (R2, "PD"), (ACCURACY, "label")}
    of_networks = kinds | {(SILHOUETTE, "label"), (SILHOUETTE, "constraint class")}
    for (name, _), part in scores.groupby(["representation", "draw"]):
        found = {*zip(part["measure"], part["target"], strict=True)}
        assert found == (of_networks if name in NETWORKS else kinds)
    assert scores.groupby(["measure", "target"])["patches"].nunique().eq(1).all()
    assert scores[scores["measure"] != SILHOUETTE]["subjects"].eq(1).all()  # one test subject
    about = scores.groupby("representation")[["pretrained", "features", "draw"]].max()
    assert about["pretrained"].reindex([*TRIVIAL, *NETWORKS]).tolist() == [
        *("-", "-", "nothing", "encoder", "encoder, decoder")
    ]
    assert about["features"].reindex([*TRIVIAL, *NETWORKS]).tolist() == [1, 7, 8, 8, 8]
    assert about["draw"].reindex([*TRIVIAL, *NETWORKS]).tolist() == [0, 0, 2, 2, 0]


def test_table_figure_and_run_record_are_written(finished):
    _, config, _ = finished
    folder = config.work_dir / "report" / "representations"
    names = {"probe.csv", "probe.md", "probe.tex", "tsne.png", "tsne.pdf", "environment.json", "run.log"}
    assert names <= {file.name for file in folder.iterdir()}
    text = (folder / "probe.md").read_text()
    assert text.startswith("Simulated scans.") and "2 × 2 pixels" in text and "without weights: later" in text
    assert "decoder level 1 of 2 (input: t1w)" in text


def test_the_input_alone_tells_t1_of_a_t1_weighted_image(finished):
    scores = finished[2].set_index(["representation", "measure", "target"])["value"]
    assert scores["intensity", R2, "T1"].item() > 0.3  # inversion recovery
    assert scores["intensity", R2, "T1"].item() > scores["intensity", R2, "T2"].item() + 0.2
    assert (scores.xs(R2, level="measure") <= 1).all() and scores.xs(ACCURACY, level="measure").between(0, 1).all()


@pytest.mark.usefixtures("without_tsne")
def test_a_representation_depends_neither_on_the_others_nor_on_chance(finished, work):
    everything, (path, config) = finished[2], work
    alone = run(path, config, "--init", "constrained")
    assert list(dict.fromkeys(alone["representation"])) == [*TRIVIAL, "constrained"]
    expected = everything[everything["representation"].isin([*TRIVIAL, "constrained"])].reset_index(drop=True)
    pandas.testing.assert_frame_equal(alone, expected)


@pytest.mark.usefixtures("without_tsne")
def test_scans_of_persons_are_never_called_simulated(work, capsys):
    path, config = work
    scores = run(path, config, "--init", "constrained", "--set", "data.simulated=false", "data.root=nowhere")
    assert set(scores["measure"]) == {ACCURACY, SILHOUETTE}
    assert "imulated" not in capsys.readouterr().out


def test_missing_foreign_and_leaking_weights_are_refused_before_anything_is_written(work):
    path, config = work
    with pytest.raises(InputError, match=r"later/weights.npz: no such file; run constrained_contrastive_learning"):
        run(path, config, "--init", "random", "later")
    with pytest.raises(InputError, match="--init nothing: neither random nor a stage of pretraining"):
        run(path, config, "--init", "nothing")
    with pytest.raises(InputError, match=r"global/weights.npz: made with another config; run step 3 again"):
        run(path, config, "--set", "pretraining.stages.global.temperature=0.2")
    with pytest.raises(InputError, match="annotated.h5: made with another config"):
        run(path, config, "--set", "slices.min_foreground=0.3")
    network = build_unet((40, 48, 1), filters=FILTERS, decoder_levels=1, head=None, seed=2)
    write_weights(config, "constrained", network, seen=["sub-005"])
    with pytest.raises(InputError, match="sub-005: test subject, but 'constrained' was pretrained on it"):
        run(path, config)
    assert not (config.work_dir / "report").exists()


def test_pixels_are_probed_in_validation_subjects_and_test_subjects_stay_unseen(work, capsys, monkeypatch):
    path, config = work
    monkeypatch.setattr("evaluation.probes.pixels.PER_CLASS", {"train": 60, "val": 60})
    asked, draw_rows = [], SliceStore.rows_of
    monkeypatch.setattr(
        SliceStore, "rows_of", lambda store, subjects: asked.extend(subjects) or draw_rows(store, subjects)
    )
    words = [
        "--config",
        str(path),
        "--work-dir",
        str(config.work_dir),
        "--only",
        "pixels",
        "--init",
        "random",
        "global",
    ]
    visualize_representations.main(words)
    split = SliceStore(config.work_dir / "h5" / "annotated.h5").attributes["split"]
    assert split["test"] and {*asked} == {*split["train"], *split["val"]}
    folder = config.work_dir / "report" / "representations"
    assert [file.name for file in folder.iterdir()] == ["pixels"]
    scores = pandas.read_csv(folder / "pixels" / "pixel_probe.csv")
    levels = ["deepest encoder level", "decoder level 1", "decoder level 2", "all together"]
    about = scores.groupby("representation")
    assert {name: [*dict.fromkeys(part["level"])] for name, part in about} == dict.fromkeys(
        ["random", "global"], levels
    ) | {name: ["all together"] for name in ("intensity", "position", "intensity + position")}
    assert scores[scores["level"] == "decoder level 2"]["draw"].tolist() == [0, 1, 2] * 2
    encoder = scores[scores["level"] == "deepest encoder level"].groupby("representation")["value"].nunique()
    assert encoder["global"] == 1 and encoder["random"] > 1  # the pretrained part is equal in all draws
    assert scores["chance"].eq(0.25).all() and scores["value"].between(0, 1).all()
    assert "chance 0.25" in (folder / "pixels" / "pixel_probe.md").read_text() + capsys.readouterr().out
    first = scores.copy()
    visualize_representations.main(words)
    pandas.testing.assert_frame_equal(pandas.read_csv(folder / "pixels" / "pixel_probe.csv"), first)


def test_without_labels_there_are_no_pixels_to_probe(packed, caplog):
    path, config = packed
    split = visualize_representations.RepresentedSplit(config, config.work, ["random"])
    assert len(split.deeds(None)) == 2 and split.deeds("patches") == [split.write]
    split.subjects["val"] = []
    assert split.deeds(None) == [split.write] and "labels of pixels are not probed" in caplog.text
    with pytest.raises(InputError, match="needs labels of training and validation subjects"):
        split.deeds("pixels")


def test_without_labels_there_are_no_held_out_subjects(work):
    path, config = work
    with pytest.raises(InputError, match="needs data.labels or synthesis"):
        run(path, config, "--set", "data.label=null", "data.labels={}")


BRIEFLY = "training: {epochs: 1, batch_size: 1, learning_rate: 1}"
SYNTHESIS = [
    "data.label=null",
    "data.labels={}",
    "crops={size: [16, 24, 4], validation: 3}",
    f"synthesis={{inputs: [t1w], targets: [t2w], subjects_n: [1], {BRIEFLY}}}",
    f"pretraining.stages={{constrained: {{method: constrained, patch_size: 2, {BRIEFLY}}}}}",
]


@pytest.mark.usefixtures("without_tsne")
@pytest.mark.parametrize("rank", [2, 3])
def test_synthesis_without_labels_in_slices_and_in_volumes(packed, tmp_path, rank):
    """Random and pretrained weights are compared by constraint class and by the contrasts to synthesise."""
    size = [16, 24, 4][:rank]
    words = ["--set", *SYNTHESIS, "network.filters=[4, 4]", f"network.rank={rank}", f"crops.size={size}"]
    config = load_config(packed[0], words[1:], tmp_path)
    shutil.copytree(packed[1].work_dir / "constraint_maps", tmp_path / "constraint_maps")
    generate_h5_pretraining.main(["--config", str(packed[0]), "--work-dir", str(tmp_path), *words])
    image = (*([40, 48] if rank == 2 else size), 1)
    network = build_unet(image, rank=rank, filters=[4, 4], head="projection", patch_size=2, seed=2)
    write_weights(config, "constrained", network)
    scores = run(packed[0], config, *words)
    found = {
        name: {*zip(part["measure"], part["target"], strict=True)} for name, part in scores.groupby("representation")
    }
    probes = {(R2, "T1"), (R2, "T2"), (R2, "PD"), (R2, "contrast t2w")}
    classes = {(SILHOUETTE, "constraint class")}
    assert found == dict.fromkeys(TRIVIAL, probes) | dict.fromkeys(["random", "constrained"], probes | classes)
    assert scores["value"].notna().all()
    folder = config.work_dir / "report" / "representations"
    text = (folder / "probe.md").read_text()
    assert ("2 × 2 pixels" if rank == 2 else "2 × 2 × 2 voxels") in text and "labelled" not in text
    assert "what is to be synthesised (t2w; 0 to 1)" in text and (folder / "tsne.png").stat().st_size > 1000
    network = build_unet(image, rank=rank, filters=[4, 4], head="projection", patch_size=2, seed=2)
    write_weights(config, "constrained", network, seen=["sub-005"])
    with pytest.raises(InputError, match="sub-005: test subject, but 'constrained' was pretrained on it"):
        run(packed[0], config, *words)


@pytest.mark.usefixtures("without_tsne")
def test_contrasts_that_were_shown_one_by_one_are_represented_one_by_one(work):
    path, config = work
    words = ["--set", "pretraining.contrasts=[t1w, t2w]", "pretraining.contrasts_as=samples"]
    config = load_config(path, words[1:], config.work_dir)
    network = build_unet((40, 48, 1), filters=FILTERS, decoder_levels=1, head="projection", seed=2)
    write_weights(config, "constrained", network, contrasts=None)
    scores = run(path, config, "--init", "constrained", *words)
    about = scores.groupby("representation")[["features", "pretrained"]].first()
    assert about["features"].to_dict() == {"constrained": 16, "intensity": 2, "intensity + position": 8}
    assert about.loc["constrained", "pretrained"] == "encoder, decoder"
    text = (config.work_dir / "report" / "representations" / "probe.md").read_text()
    assert "(input: t1w, t2w, one by one, their features side by side)" in text
    split = visualize_representations.RepresentedSplit(config, config.work, ["constrained"])
    part, network = split.sample("test"), build_unet((40, 48, 1), filters=FILTERS, decoder_levels=1, head=None, seed=2)
    for channel, found in enumerate(split.feature_maps(network, part)):
        maps = network.predict(part.images[..., channel : channel + 1], verbose=0)
        expected = maps.reshape(len(maps), *(n for size in maps.shape[1:3] for n in (size, 1)), 8)
        np.testing.assert_allclose(found, expected.mean(axis=(2, 4)).reshape(len(maps), -1, 8), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("without_tsne")
def test_a_config_without_constraint_maps(packed, tmp_path):
    path, stage = packed[0], "{global: {method: global, training: {epochs: 1, batch_size: 4, learning_rate: 1e-3}}}"
    words = ["--set", "constraint_maps=null", f"pretraining.stages={stage}"]
    generate_h5_pretraining.main(["--config", str(path), "--work-dir", str(tmp_path), *words])
    scores = run(path, load_config(path, words[1:], tmp_path), *words)
    assert set(scores["representation"]) == {*TRIVIAL, "random"}
    of_classes = scores[scores["target"] == "constraint class"]["value"]
    assert of_classes.isna().all() and scores[scores["target"] == "label"]["value"].notna().all()
