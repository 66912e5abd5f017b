"""A tiny simulated cohort, its config, and the commands of the steps, for tests that disturb them."""

import yaml

SUBJECTS, SHAPE = 6, (40, 32, 6)
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
MODEL = "finetuning/t1w/constrained/n02/r0"


def write_cohort(folder, **sections):
    """Simulate scans below `folder/scans` and write `folder/tiny.yaml`; returns the path of the config."""
    from simulate_cohort import simulate_cohort

    simulate_cohort(folder / "scans", SUBJECTS, "renal", 5, SHAPE, 1)
    return write_config(folder, **sections)


def one_of_each():
    """Sections for the shortest run of every step: one stage, two cells, no synthesis."""
    training = {"batch_size": 4, "learning_rate": 0.003}
    stage = {"method": "constrained", "features": 8, "training": training | {"epochs": 8}}
    finetuning = {
        "contrasts": {"t1w": ["t1w"]},
        "inits": ["random", "constrained"],
        "subjects_n": [2],
        "repeats": 1,
        "training": training | {"epochs": 8, "steps_per_epoch": 4},
        "evaluate_every": 2,
    }
    pretraining = {"contrasts": ["t1w"], "stages": {"constrained": stage}}
    return {"pretraining": pretraining, "finetuning": finetuning, "synthesis": None}


def write_config(folder, **sections):
    """Write `folder/tiny.yaml` with these sections in place of its own."""
    training = {"batch_size": 4, "learning_rate": 0.003}
    scans = {name: f"{{subject}}/{name}.nii.gz" for name in ("t1w", "t2w")}
    stages = {"global": {"method": "global"}, "constrained": {"method": "constrained", "warm_start": "global"}}
    content = {
        "name": "tiny",
        "seed": 7,
        "work_dir": str(folder / "work"),
        "data": {
            "root": str(folder / "scans"),
            "contrasts": scans,
            "label": "{subject}/label.nii.gz",
            "labels": {"right_kidney": [1], "left_kidney": [2]},
            "ignored_label_values": [3, 4],
            "splits": "splits.json",
            "simulated": True,
        },
        "constraint_maps": {"contrasts": ["t1w", "t2w"], "clusters": 5},
        "slices": {"image_size": [32, 48]},
        "network": {"filters": [4, 8]},
        "crops": {"size": [16, 16], "validation": 2},
        "pretraining": {
            "contrasts": ["t1w"],
            "stages": {
                name: stage | {"features": 8, "training": training | {"epochs": 5}} for name, stage in stages.items()
            },
        },
        "finetuning": {
            "contrasts": {"t1w": ["t1w"]},
            "inits": ["random", "constrained"],
            "subjects_n": [1, 2],
            "repeats": 2,
            "training": training | {"epochs": 6, "steps_per_epoch": 4},
            "evaluate_every": 2,
        },
        "synthesis": {
            "inputs": ["t1w"],
            "targets": ["t2w"],
            "inits": ["random"],
            "subjects_n": [1, 2],
            "repeats": 1,
            "training": training | {"epochs": 4, "steps_per_epoch": 3},
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content | sections, sort_keys=False))
    return path


def words_of(step, config, work):
    """The command line of a step, as a list of words."""
    if step == "predict":
        return ["--model", work / MODEL, "--input", config.parent / "scans", "--output", work / "predicted"]
    return ["--config", config, "--work-dir", work]
