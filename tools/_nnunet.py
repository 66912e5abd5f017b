"""The part of tools.run_nnunet in nnU-Net's environment: planning, preprocessing, training and prediction.

    .venv-nnunet/bin/python tools/_nnunet.py prepare SETTINGS.json
    .venv-nnunet/bin/python tools/_nnunet.py cell SETTINGS.json FOLD IMAGES OUTPUT

It imports only nnU-Net and the standard library, nothing of this suite. tools.run_nnunet writes SETTINGS.json; the
environment variables nnUNet_raw, nnUNet_preprocessed and nnUNet_results name the folders.
"""

import importlib.metadata
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path

PLANS, CONFIGURATION = "matchedPlans", "2d"
TIMES = "times.json"
# Environment variables of nnU-Net.
RAW, PREPROCESSED, AUGMENTING = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_n_proc_DA"


def main():
    command, settings, *rest = sys.argv[1:]
    # Training augments in the main process, to respect `threads`; planning needs at least one worker.
    os.environ[AUGMENTING] = "0" if command == "cell" else "1"
    settings = json.loads(Path(settings).read_text(encoding="utf-8"))
    {"prepare": prepare, "cell": cell}[command](settings, *rest)


def prepare(settings):
    """Let nnU-Net plan the dataset, set our network, patch, spacing and batch in the plan, and preprocess."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    number, folder = settings["number"], preprocessed(settings)
    extract_fingerprints([number], num_processes=1, check_dataset_integrity=True, show_progress_bar=False)
    plan_experiments([number])
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["plans_name"] = PLANS
    plans["configurations"] = {CONFIGURATION: matched(plans["configurations"][CONFIGURATION], settings)}
    (folder / f"{PLANS}.json").write_text(json.dumps(plans, indent=1))
    preprocess([number], PLANS, [CONFIGURATION], num_processes=[1], show_progress_bar=False)
    shutil.copy(Path(os.environ[RAW]) / settings["dataset"] / "splits_final.json", folder)


def matched(plan, settings):
    """Return the 2D plan with the features, patch, spacing and batch of our network; the rest is nnU-Net's."""
    filters, rank = settings["filters"], 2
    arguments = plan["architecture"]["arch_kwargs"]
    arguments |= {
        "n_stages": len(filters),
        "features_per_stage": filters,
        "kernel_sizes": [[3] * rank] * len(filters),
        "strides": [[1] * rank, *[[2] * rank] * (len(filters) - 1)],
        "n_conv_per_stage": [2] * len(filters),
        "n_conv_per_stage_decoder": [2] * (len(filters) - 1),
    }
    # Its axes may be in another order than ours: the patch is longer along the axis where its own was longer.
    long_first = plan["patch_size"][0] > plan["patch_size"][1]
    plan["patch_size"] = sorted(settings["image_size"], reverse=long_first)
    plan["batch_size"] = settings["batch_size"]
    if settings["pixel_mm"] is not None:
        plan["spacing"] = [settings["pixel_mm"]] * rank
    return plan


def cell(settings, fold, images, output):
    """Train one fold with nnU-Net's trainer for our number of updates, predict the test images, and record times."""
    import numpy as np
    import torch

    torch.set_num_threads(settings["threads"])
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(settings["seed"] + int(fold))
    trainer = new_trainer(settings, int(fold))
    began = time.monotonic()
    trainer.initialize()
    kept = [Path(trainer.output_folder) / f"checkpoint_{name}.pth" for name in ("final", "latest")]
    if found := [path for path in kept if path.exists()]:
        trainer.load_checkpoint(str(found[0]))
    done = trainer.current_epoch
    if done < trainer.num_epochs:
        trainer.run_training()
    seconds = time.monotonic() - began
    Path(output).mkdir(parents=True, exist_ok=True)
    predict(trainer, images, output)
    epochs = trainer.num_epochs - done
    seen = epochs * trainer.num_iterations_per_epoch * settings["batch_size"]
    times = {"seconds": seconds, "epochs": epochs, "slices_per_second": seen / seconds if epochs else None}
    times |= {"version": importlib.metadata.version("nnunetv2"), "device": str(trainer.device)}
    (Path(output) / TIMES).write_text(json.dumps(times))


def new_trainer(settings, fold):
    """Build nnU-Net's trainer, changing only the numbers of epochs and updates."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    folder = preprocessed(settings)
    plans = json.loads((folder / f"{PLANS}.json").read_text()) | {"continue_training": False}
    described = json.loads((folder / "dataset.json").read_text())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = nnUNetTrainer(plans, CONFIGURATION, fold, described, device)
    trainer.num_epochs, trainer.num_iterations_per_epoch = settings["epochs"], settings["steps_per_epoch"]
    trainer.num_val_iterations_per_epoch = 1  # only monitored: the last weights are kept
    trainer.save_every = max(1, settings["epochs"] // 10)
    return trainer


def predict(trainer, images, output):
    """Predict a folder of images with the last weights, as nnUNetv2_predict does."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(device=trainer.device, perform_everything_on_device=False, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    predictor.predict_from_files_sequential(str(images), str(output))


def preprocessed(settings):
    return Path(os.environ[PREPROCESSED]) / settings["dataset"]


if __name__ == "__main__":
    main()
