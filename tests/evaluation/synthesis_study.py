"""A small study of contrast synthesis as after step 4: scans, metrics and predictions, made without a network."""

import json
import types

import nibabel
import numpy as np
import yaml

from data.scans.volumes import write_nifti
from evaluation.scores.synthesis_metrics import score_synthesis
from utils.config.load import load_config

SUBJECTS = [f"sub-{number:02d}" for number in range(1, 7)]
TEST = SUBJECTS[:4]
SHAPE, AFFINE = (20, 18, 6), np.diag([-2.0, 2.0, 5.0, 1.0])
CONTRASTS, TARGETS = ("t1gd", "flair", "t1", "t2"), ("t1", "t2")
NOISE = {("random", 2): 0.3, ("random", 10): 0.15, ("constrained", 2): 0.2, ("constrained", 10): 0.1}
LESION = (slice(4, 8), slice(10, 14))  # in slice 4, and a single voxel in slice 1


def low_high(subject, target):
    """Return the intensities that are mapped to 0 and 1, which differ for every subject and contrast."""
    number = SUBJECTS.index(subject) + 10 * TARGETS.index(target)
    return 20.0 + number, 520.0 + 7 * number


def make_scans(root):
    """Write ellipsoids with a lesion; returns `root`, the targets `{subject: (X, Y, Z, 2)}` in [0, 1], and `head`."""
    rng, scaled = np.random.default_rng(0), {}
    x, y, z = np.meshgrid(*(np.linspace(-1.2, 1.2, size) for size in SHAPE), indexing="ij")
    head = x**2 + y**2 + 0.3 * z**2 < 1
    lesion = np.zeros(SHAPE, np.uint8)
    lesion[*LESION, 4] = 1
    lesion[9, 9, 1] = 1
    for subject in SUBJECTS:
        (root / subject).mkdir(parents=True)
        volumes = {name: np.clip(head * (0.5 + 0.4 * x + rng.normal(0, 0.05, SHAPE)), 0, 1) for name in CONTRASTS}
        volumes["t2"] = np.clip(volumes["t2"] + 0.3 * lesion, 0, 1)
        for name, volume in volumes.items():
            low, high = low_high(subject, name) if name in TARGETS else (0, 1000)
            image = (low + (high - low) * volume).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(image, AFFINE), root / subject / f"{name}.nii.gz")
        for name, volume in (("mask", head), ("label", lesion)):
            nibabel.save(nibabel.Nifti1Image(volume.astype(np.uint8), AFFINE), root / subject / f"{name}.nii.gz")
        scaled[subject] = np.stack([volumes[name] for name in TARGETS], axis=-1)
    return types.SimpleNamespace(root=root, scaled=scaled, head=head)


def make_config(folder, root, **sections):
    training = {"epochs": 1, "batch_size": 2, "learning_rate": 1e-3}
    content = {
        "name": "tiny_synthesis",
        "seed": 1,
        "work_dir": str(folder / "work"),
        "data": {
            "root": str(root),
            "contrasts": {name: f"{{subject}}/{name}.nii.gz" for name in CONTRASTS},
            "mask": "{subject}/mask.nii.gz",
            "splits": {"train": SUBJECTS[4:5], "val": SUBJECTS[5:], "test": TEST},
        },
        "slices": {"image_size": [32, 32]},
        "crops": {"size": [32, 32]},
        "pretraining": {
            "contrasts": list(CONTRASTS),
            "stages": {"constrained": {"method": "regression", "training": dict(training)}},
        },
        "synthesis": {
            "inputs": ["t1gd", "flair"],
            "targets": list(TARGETS),
            "subjects_n": [2, 10],
            "repeats": 2,
            "training": training,
        },
    }
    for name, section in sections.items():
        content[name] = content[name] | section if isinstance(content.get(name), dict) else section
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def write_cell(config, scans, init, n, repeat):
    """Write the files of a cell of step 4: metrics, predictions in the scans' own units, a run record."""
    folder = config.work_dir / "synthesis" / init / f"n{n:02d}" / f"r{repeat}"
    (folder / "predictions").mkdir(parents=True)
    rows = []
    for number, subject in enumerate(TEST):
        rng = np.random.default_rng([n, repeat, number])
        noise = NOISE[init, n] * (1 + 0.3 * number) * rng.normal(0, 1, (*SHAPE, 2)) * [1.0, 0.5]
        made = np.clip(scans.scaled[subject] + scans.head[..., None] * noise, 0, 1)
        for row in score_synthesis(made, scans.scaled[subject], TARGETS, data_range=1.0, mask=scans.head):
            low, high = low_high(subject, row["label"])
            real = low + (high - low) * made[..., TARGETS.index(row["label"])]
            path = folder / "predictions" / f"{subject}_{row['label']}.nii.gz"
            write_nifti(path, real, AFFINE, span=(low, high))
            rows.append({"subject": subject, **row, "intensity_low": low, "intensity_high": high})
    metrics = {"config_hash": config.hash_of_synthesis(init), "seed": 1, "inputs": ["t1gd", "flair"], "init": init}
    metrics |= {"targets": list(TARGETS), "split": "", "n_annotated": n, "repeat": repeat, "annotated_available": 10}
    metrics |= {"train_subjects": SUBJECTS[4:5], "validation_subjects": SUBJECTS[5:], "mask": "given"}
    metrics |= {"duration_s": 36.0, "compile_s": 9.0, "per_subject": rows}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "environment.json").write_text(json.dumps({"backend": "tensorflow", "device": "cpu", "duration_s": 36.0}))
    (folder / "command.txt").write_text("python finetune_synthesis.py --config tiny\n")


def make_work(scans, folder, **sections):
    """Write a config and a complete work dir; returns the path of the config and the config."""
    path = make_config(folder, scans.root, **sections)
    config = load_config(path)
    for init, n in NOISE:
        for repeat in range(2):
            write_cell(config, scans, init, n, repeat)
    history = config.work_dir / "pretraining" / "constrained" / "history.csv"
    history.parent.mkdir(parents=True)
    history.write_text("epoch,loss,val_loss\n1,3.0,3.1\n2,2.5,\n3,2.2,2.4\n")
    return path, config
