"""A small valid cohort, its config and the commands of the steps, for tests to damage or interrupt.

`packed` and `finished` in tests/conftest.py are this cohort after two and after four steps.
"""

import nibabel
import numpy as np
import yaml

SUBJECTS = ["sub-1", "sub-2", "sub-3"]
SHAPE = (16, 14, 4)
AFFINE = np.array([[-2, 0, 0, 15], [0, 2, 0, -13], [0, 0, 5, 0], [0, 0, 0, 1.0]])
CONFIG = {
    "name": "tiny",
    "seed": 3,
    "data": {
        "contrasts": {"t1": "{subject}/t1.nii.gz", "t2": "{subject}/t2.nii.gz"},
        "label": "{subject}/label.nii.gz",
        "labels": {"kidney": [1], "liver": [2]},
        "splits": {"train": ["sub-1"], "val": ["sub-2"], "test": ["sub-3"]},
    },
    "constraint_maps": {"contrasts": ["t1", "t2"], "clusters": 3, "components": 2},
    "slices": {"image_size": [16, 16], "min_foreground": 0.0},
    "network": {"filters": [2, 4]},
    "pretraining": {
        "contrasts": ["t1", "t2"],
        "stages": {
            "global": {
                "method": "global",
                "features": 4,
                "training": {"epochs": 1, "batch_size": 2, "learning_rate": 0.001},
            },
        },
    },
    "finetuning": {
        "contrasts": {"t1": ["t1"]},
        "inits": ["random", "global"],
        "subjects_n": [1],
        "repeats": 1,
        "training": {"epochs": 1, "batch_size": 2, "learning_rate": 0.001},
    },
}
STEPS = {
    "maps": ("generate_constraint_maps", "constraint_maps"),
    "h5": ("generate_h5_pretraining", "h5"),
    "pretraining": ("constrained_contrastive_learning", "pretraining"),
    "finetuning": ("finetune_segmentation", "finetuning"),
    "synthesis": ("finetune_synthesis", "synthesis"),
    "report": ("reproduce_tables", "report"),
    "predict": ("predict", "predicted"),
}
FIRST_FOUR = [script for script, _ in list(STEPS.values())[:4]]
MODEL = "finetuning/t1/random/n01/r0"


def volumes(seed=0, shape=SHAPE):
    """Return a body with an organ in noise: `{"t1": float32, "t2": float32, "label": uint8, "mask": uint8}`."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    body = np.repeat((x**2 + y**2 < 0.8)[..., None], shape[2], axis=2)
    organ = np.repeat(((x - 0.3) ** 2 + y**2 < 0.15)[..., None], shape[2], axis=2)
    tissue = np.where(organ, 2, body.astype(int))
    images = {name: np.array(levels)[tissue] for name, levels in {"t1": [0, 300, 600], "t2": [0, 400, 500]}.items()}
    images = {name: np.abs(image + rng.normal(0, 10, shape)).astype(np.float32) for name, image in images.items()}
    return images | {"label": organ.astype(np.uint8), "mask": body.astype(np.uint8)}


def save(path, array, affine=AFFINE, kind=nibabel.Nifti1Image):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(kind(array, affine, dtype=array.dtype), path)


def write_cohort(folder, **sections):
    """Write scans below `folder/data` and `folder/tiny.yaml`; returns the path of the config."""
    for seed, subject in enumerate(SUBJECTS):
        for name, array in volumes(seed).items():
            save(folder / "data" / subject / f"{name}.nii.gz", array)
    return write_config(folder, **sections)


def write_config(folder, **sections):
    content = CONFIG | {"work_dir": str(folder / "work")}
    content["data"] = content["data"] | {"root": str(folder / "data")}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content | sections, sort_keys=False))
    return path


def of_several_epochs():
    """Return sections with training runs long enough to interrupt: one stage, two cells, one synthesis."""
    training = {"batch_size": 2, "learning_rate": 0.003}
    stage = {"method": "constrained", "features": 8, "training": training | {"epochs": 4}}
    synthesis = {"inputs": ["t1"], "targets": ["t2"], "inits": ["random"], "subjects_n": [1], "repeats": 1}
    return {
        "pretraining": {"contrasts": ["t1"], "stages": {"constrained": stage}},
        "finetuning": {
            "contrasts": {"t1": ["t1"]},
            "inits": ["random", "constrained"],
            "subjects_n": [1],
            "repeats": 1,
            "training": training | {"epochs": 4, "steps_per_epoch": 2},
            "evaluate_every": 2,
        },
        "crops": {"size": [8, 8], "validation": 2},
        "synthesis": synthesis | {"training": training | {"epochs": 4, "steps_per_epoch": 3}},
    }


def words_of(step, config, work):
    """Return the command line of a step as a list of words."""
    if step == "predict":
        return ["--model", work / MODEL, "--input", config.parent / "data", "--output", work / "predicted"]
    return ["--config", config, "--work-dir", work]
