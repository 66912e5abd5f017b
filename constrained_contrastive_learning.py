"""Step 3 of 5: pretrain encoder and decoder, stage after stage.

    python constrained_contrastive_learning.py --config configs/lgg_tcga.yaml

Reads   h5/pretrain_train.h5 and h5/pretrain_val.h5 in the work dir (step 2).
Writes  pretraining/<stage>/ with weights.npz (best on the fixed validation set), weights_last.npz, history.csv,
        curves.png and a run record, for each stage of the config; with cross-validation, one such folder per fold.
Takes   minutes (CPU, small images) to hours. Finished stages are skipped; an interrupted one resumes by itself.
Next    python finetune_segmentation.py --config FILE
"""

import logging
from pathlib import Path

from utils.checks import InputError
from utils.config import from_command_line
from utils.runs import child_seed, exit_code_of, open_run
from utils.schema import channel_names

log = logging.getLogger("mrccl")


def add_options(parser):
    parser.add_argument("--method", nargs="+", metavar="STAGE", help="stages to run (default: all in the config)")
    parser.add_argument(
        "--folds", nargs="+", type=int, metavar="K", help="folds of the cross-validation (default: all)"
    )
    parser.add_argument("--overwrite", action="store_true", help="redo finished stages")


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, needs=("slices", "pretraining"))
    for name in options.method or ():
        if name not in config.pretraining.stages:
            raise InputError(f"--method {name}: not one of the stages {', '.join(config.pretraining.stages)}")
    from data.h5_store import packed_folders
    from data.splits import chosen_folds

    for folder in chosen_folds(packed_folders(config.work_dir, "pretrain_train.h5"), options.folds):
        for stage in config.pretraining.stages:  # the config's order: what others start from comes first
            if not options.method or stage in options.method:
                pretrain(config, stage, folder, options.overwrite)
    log.info("next: python finetune_segmentation.py --config %s", options.config)


def pretrain(config, name, folder, overwrite):
    """Train one stage in one work folder, unless it is finished."""
    from evaluation.figures import save_training_curves
    from models.weights import read_weights, save_weights
    from training.tasks import use_precision

    stage, target, tag = config.pretraining.stages[name], folder / "pretraining" / name, config.hash_of_stage(name)
    weights = target / "weights.npz"
    if weights.exists() and not overwrite:
        if read_weights(weights)[1].get("config_hash") != tag:
            raise InputError(f"{target}: made with another config; give --overwrite, or another --work-dir")
        log.info("%s: finished before, skipped", target)
        return
    contrasts = channel_names(config.data.contrasts, config.pretraining.contrasts)
    with open_run(target, config.plain(), config.seed):
        use_precision(stage.training.mixed_precision)
        stores = open_stores(config, folder)
        network, history = train(
            config,
            stage,
            stores,
            contrasts,
            seed=child_seed(config.seed, "pretraining", name),
            warm_start=lambda network: start_from(stage.warm_start, network, folder, contrasts),
            folder=target,
            tag=tag,
            name=str(target.relative_to(config.work_dir)),
        )
        save_training_curves(history, target / "curves.png", title=f"{config.name}: {name}")
        # Written last: a folder with weights.npz is a finished stage.
        subjects = {part: store.subjects for part, store in stores.items()}
        save_weights(network, weights, config_hash=tag, contrasts=contrasts, subjects=subjects)
    log.info("wrote %s", target)


def open_stores(config, folder):
    """Open the packed slices of a work folder; refuse those of another config."""
    from data.h5_store import SliceStore

    stores = {part: SliceStore(folder / "h5" / f"pretrain_{part}.h5") for part in ("train", "val")}
    for store in stores.values():
        store.check_hash(config.hash_of_slices())
    return stores


def train(config, stage, stores, contrasts, **run):
    """Hand slices, maps and the stage's settings to its method."""
    from training.pretraining import pretrain_constrained, pretrain_global

    images = [stores[part].images(contrasts) for part in ("train", "val")]
    settings = {"filters": config.network.filters, "training": stage.training.model_dump(), "features": stage.features}
    if stage.method == "global":
        changes = {"crop_scale": stage.crop_scale, "brightness": stage.brightness, "contrast": stage.contrast}
        return pretrain_global(*images, temperature=stage.temperature, **changes, **settings, **run)
    maps = [stores[part].constraint_maps() for part in ("train", "val")]
    return pretrain_constrained(
        images[0],
        maps[0],
        images[1],
        maps[1],
        decoder_levels=stage.decoder_levels,
        patch_size=stage.patch_size,
        anchors_per_slice=stage.anchors_per_slice,
        loss_settings={
            "temperature": stage.temperature,
            "nearest_patches": stage.nearest_patches,
            "comparison": stage.comparison,
            "anchor_is_positive": stage.anchor_is_positive,
        },
        **settings,
        **run,
    )


def start_from(source, network, folder, contrasts):
    """Move the weights of an earlier stage, or of a file, into a network."""
    from models.weights import read_weights, transfer

    if source is None:
        return
    earlier = folder / "pretraining" / source / "weights.npz"
    path = earlier if earlier.exists() else Path(source)
    if not path.exists():
        raise InputError(f"warm_start: neither {earlier} nor a file {source} exists; run that stage first")
    arrays, metadata = read_weights(path)
    report = transfer(arrays, network, source_contrasts=metadata.get("contrasts"), target_contrasts=contrasts)
    log.info("warm start from %s: %s", path, report.summary())


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
