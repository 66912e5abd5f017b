"""The papers' presets run, at reduced size, from generated files in the public layouts to the report."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

import constrained_contrastive_learning
import finetune_segmentation
import finetune_synthesis
import generate_constraint_maps
import generate_h5_pretraining
import reproduce_tables
from utils.runs import read_json

PRESETS = Path(__file__).resolve().parents[1] / "configs" / "papers"
SHAPE = (40, 36, 5)
pytestmark = pytest.mark.usefixtures("uncompiled")


def read_preset(name):
    return yaml.safe_load((PRESETS / f"{name}.yaml").read_text())


def write_image(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-3.0, -3.0, 5.0, 1.0])), path)


def anatomy(number, classes):
    """Return the class of every voxel: a body with one blob per class, side by side."""
    generator = np.random.default_rng(number)
    x, y, _ = np.indices(SHAPE)
    tissue = np.where((x - 20) ** 2 / 18**2 + (y - 18) ** 2 / 16**2 < 1, 1, 0)
    for index in range(classes):
        centre = np.array([10 + 20 * index / max(1, classes - 1), 18]) + generator.normal(0, 1, 2)
        tissue[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 16] = index + 2
    return tissue


def contrast(tissue, seed):
    generator = np.random.default_rng(seed)
    levels = np.concatenate([[0], generator.permutation(np.linspace(200, 900, tissue.max()))])
    return (levels[tissue] + np.abs(generator.normal(0, 20, SHAPE))).astype(np.float32)


def write_scans(preset, root):
    """Generate seven subjects in the layout of a preset, two of them without a label."""
    config = read_preset(preset)["data"]
    values = [numbers[0] for numbers in config.get("labels", {"lesion": [1]}).values()]
    for number in range(7):
        subject = f"{'prostate_' if 'prostate' in preset else 'BraTS2021_'}{number:02d}"
        tissue, is_labelled = anatomy(number, len(values)), number < 5
        for place, entry in enumerate(config["contrasts"].values()):
            pattern = entry if isinstance(entry, str) else entry["file"]
            file = root / pattern.replace("{subject}", subject).replace("*", "Tr" if is_labelled else "Ts")
            volumes = [
                contrast(tissue, 7 * place + echo) for echo in range(1 if isinstance(entry, str) else entry["volumes"])
            ]
            write_image(file, volumes[0] if isinstance(entry, str) else np.stack(volumes, -1))
            file.with_name(f"._{file.name}").write_bytes(b"resource fork")  # as left by macOS in archives
        if is_labelled and "label" in config:
            label = np.array([0, 0, *values], np.uint8)[tissue]
            write_image(root / config["label"].replace("{subject}", subject), label)


def small(preset, root, work, *more):
    """Return the command line of a preset with all sizes reduced."""
    stages = read_preset(preset)["pretraining"]["stages"]
    changes = [f"data.root={root}", "data.splits={train: 2, val: 1, test: 2}", "slices.image_size=[16, 16]"]
    # Two levels, or four if a stage trains three decoder levels.
    levels = 1 + max(stage.get("decoder_levels") or 1 for stage in stages.values())
    changes += ["slices.pixel_size=8", f"network.filters={levels * [4]}"]
    changes += [
        f"pretraining.stages.{name}.training={{epochs: 1, batch_size: 16, learning_rate: 1e-3}}" for name in stages
    ]
    changes += [f"pretraining.stages.{name}.patch_size=1" for name in stages if stages[name]["method"] == "constrained"]
    changes += [f"pretraining.stages.{name}.region_size=1" for name in stages if stages[name]["method"] == "local"]
    changes += ["finetuning.subjects_n=[2]", "finetuning.repeats=1"]
    changes += ["finetuning.training={epochs: 1, batch_size: 16, learning_rate: 1e-3}", *more]
    return ["--config", str(PRESETS / f"{preset}.yaml"), "--work-dir", str(work), "--set", *changes]


def run(script, words, *options):
    assert script.main([*words, *options]) in (None, 0)


@pytest.mark.parametrize(
    ("preset", "stage", "contrasts"),
    [("prostate_arxiv2022", "global_local", "t2"), ("brats_medphys2024", "constrained_t1", "t1gd")],
)
def test_a_preset_runs_from_scans_to_report(preset, stage, contrasts, tmp_path):
    write_scans(preset, tmp_path / "scans")
    words, config = small(preset, tmp_path / "scans", tmp_path / "work"), read_preset(preset)
    if "constraint_maps" in config:
        run(generate_constraint_maps, words)
    run(generate_h5_pretraining, words)
    run(constrained_contrastive_learning, words, "--method", "global", stage)
    run(finetune_segmentation, words, "--init", "random", stage, "--contrasts", contrasts)
    run(reproduce_tables, words)
    cells = sorted((tmp_path / "work" / "finetuning").glob("*/*/n*/r*/metrics.json"))
    assert len(cells) == 2  # inits; the grid over N is run in test_pipeline.py
    rows = read_json(cells[0])["per_subject"]
    scored = config.get("evaluation", {}).get("regions") or config["data"]["labels"]
    assert [row["label"] for row in rows] == 2 * list(scored)
    assert config["name"] in (tmp_path / "work" / "report" / "index.html").read_text()
    # The two unlabelled subjects are used in pretraining, test subjects are not.
    seen = set(read_json(tmp_path / "work" / "pretraining" / "global" / "subjects.json")["train"])
    assert len(seen) == 4 and not seen & {row["subject"] for row in rows}


def test_the_preset_of_synthesis_runs_from_scans_to_report(tmp_path):
    write_scans("synthesis_poster", tmp_path / "scans")
    training = "training={epochs: 1, steps_per_epoch: 1, batch_size: 2, learning_rate: 1e-3}"
    changes = [f"data.root={tmp_path / 'scans'}", "data.splits={train: 3, val: 1, test: 2}"]
    changes += ["slices.image_size=[36, 40]", "network.filters=[4, 4]", "crops.size=[16, 16, 4]"]
    changes += [f"pretraining.stages.constrained.{training}", "pretraining.stages.constrained.patch_size=2"]
    changes += [f"synthesis.{training}", "synthesis.subjects_n=[2]", "synthesis.repeats=1"]
    words = [
        "--config",
        str(PRESETS / "synthesis_poster.yaml"),
        "--work-dir",
        str(tmp_path / "work"),
        "--set",
        *changes,
    ]
    for script in (
        generate_constraint_maps,
        generate_h5_pretraining,
        constrained_contrastive_learning,
        finetune_synthesis,
        reproduce_tables,
    ):
        run(script, words)
    cells = sorted((tmp_path / "work" / "synthesis").glob("*/n*/r*/metrics.json"))
    assert len(cells) == 2  # inits; the grid over N is run in test_pipeline.py
    assert [row["label"] for row in read_json(cells[0])["per_subject"]] == 2 * ["t1", "t2"]
    page = (tmp_path / "work" / "report" / "index.html").read_text()
    assert "synthesis_poster" in page and "T1w SSIM, pretrained" in page


@pytest.mark.parametrize("preset", ["liver_arxiv2022", "abdomen_t2_medphys2024", "renal_ismrm2024"])
def test_a_preset_packs_its_scans(preset, tmp_path):
    write_scans(preset, tmp_path / "scans")
    words = small(preset, tmp_path / "scans", tmp_path / "work")
    if "constraint_maps" in read_preset(preset):
        run(generate_constraint_maps, words)
    run(generate_h5_pretraining, words)
    assert (tmp_path / "work" / "h5" / "annotated.h5").exists()


def test_every_preset_says_where_each_value_comes_from():
    for path in PRESETS.glob("*.yaml"):
        config = yaml.safe_load(path.read_text())
        assert config["paper"] == config["name"] == path.stem
        text = path.read_text()
        assert "# not stated; ours" in text
        for line in text.splitlines():
            if "training: {epochs" in line and "medphys" not in path.stem:
                assert "#" in line, f"{path.name}: {line.strip()} names no source"
