"""Step 3 of 5: pretrain encoder and decoder, stage after stage.

    python constrained_contrastive_learning.py --config configs/lgg_tcga.yaml

Reads   h5/pretrain_train.h5 and h5/pretrain_val.h5 in the work dir (step 2).
Writes  pretraining/<stage>/ with weights.npz (best on the fixed validation set), weights_last.npz, history.csv,
        curves.png and a run record, for each stage of the config, of constrained stages also effective.json (what
        their lengths and shares come to on the data); with cross-validation, one such folder per fold.
Takes   minutes (CPU, small images) to hours. Finished stages are skipped; an interrupted one resumes by itself.
Next    python finetune_segmentation.py --config FILE
"""

import itertools
import json
import logging
from pathlib import Path

from utils.checks import InputError
from utils.config import add_training_options, chosen_sinks, from_command_line, positive
from utils.environment import make_deterministic
from utils.runs import child_seed, drop_checkpoint, exit_code_of, open_run, write_json
from utils.schema import channel_names, fingerprint

log = logging.getLogger("mrccl")


def add_options(parser):
    parser.add_argument("--method", nargs="+", metavar="STAGE", help="stages to run (default: all in the config)")
    parser.add_argument(
        "--folds", nargs="+", type=int, metavar="K", help="folds of the cross-validation (default: all)"
    )
    parser.add_argument("--devices", type=positive, default=1, metavar="N", help="GPUs that share a batch (default: 1)")
    add_training_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="redo finished stages")


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, needs=("slices", "pretraining"))
    if options.deterministic:
        make_deterministic()
    for name in options.method or ():
        if name not in config.pretraining.stages:
            raise InputError(f"--method {name}: not one of the stages {', '.join(config.pretraining.stages)}")
    from data.h5_store import packed_folders
    from data.splits import chosen_folds
    from training.devices import check_batch_sizes, data_parallel

    # The config's order: what others start from comes first.
    stages = [name for name in config.pretraining.stages if not options.method or name in options.method]
    sizes = {name: config.pretraining.stages[name].training.batch_size for name in stages}
    check_batch_sizes(options.devices, {f"pretraining.stages.{name}.training": size for name, size in sizes.items()})
    folders = chosen_folds(packed_folders(config.work_dir, "pretrain_train.h5"), options.folds)
    sinks = chosen_sinks(options)
    with data_parallel(options.devices):
        for folder, name in itertools.product(folders, stages):
            pretrain(config, name, folder, options.overwrite, **sinks)
    script = "segmentation" if config.finetuning or not config.synthesis else "synthesis"
    log.info("next: python finetune_%s.py %s", script, options.again)


def pretrain(config, name, folder, overwrite, **sinks):
    """Train one stage in one work folder, unless it is finished."""
    from evaluation.figures import save_training_curves
    from models.weights import save_weights
    from training.devices import use_precision
    from training.tracking import tracked

    stage, target = config.pretraining.stages[name], folder / "pretraining" / name
    stores = open_stores(config, folder)
    subjects = {part: store.subjects for part, store in stores.items()}
    contrasts = channel_names(config.data.contrasts, config.pretraining.contrasts)
    # A network that saw the contrasts one by one has an input of no particular contrast.
    inputs = contrasts if config.pretraining.contrasts_as == "channels" else None
    origin = {"config_hash": config.hash_of_stage(name), "seed": config.seed, "subjects": subjects}
    origin |= scans_of(stores)
    if is_finished(target / "weights.npz", origin, overwrite):
        return
    earlier = read_earlier(config, stage.warm_start, folder, scans_of(stores))
    send = tracked(target, config.plain(), origin["config_hash"], sinks.get("with_mlflow"))
    with open_run(target, config.plain(), config.seed), send:
        if (target / "weights.npz").exists():  # what is redone must not count as finished if it is interrupted
            drop_checkpoint(target)
            (target / "weights.npz").unlink()
        if earlier:
            log.info("warm start from %s", stage.warm_start)
        write_json(target / "subjects.json", subjects)
        use_precision(stage.training.mixed_precision)
        network, history = train(
            config,
            stage,
            stores,
            contrasts,
            seed=child_seed(config.seed, "pretraining", name),
            warm_start=lambda network: start_from(earlier, network, inputs),
            folder=target,
            tag=json.dumps(origin),
            name=str(target.relative_to(config.work_dir)),
            **sinks,
        )
        shown = {"contrasts": inputs} | ({"contrasts_one_by_one": contrasts} if inputs is None else {})
        note = "Simulated scans. " if config.data.simulated else ""
        save_training_curves(history, target / "curves.png", title=f"{note}{config.name}: {name}")
        # Written last: a folder with weights.npz is a finished stage.
        save_weights(network, target / "weights.npz", **seen_by(stores, earlier), **shown, **origin)
        drop_checkpoint(target)
    log.info("wrote %s", target)


def is_finished(weights, origin, overwrite):
    """True when a stage is done; InputError when it comes from another config, seed or set of subjects."""
    from models.weights import read_weights

    if overwrite or not weights.exists():
        return False
    drop_checkpoint(weights.parent)  # a kill may have left it: a run anew must not go on from there
    found = read_weights(weights)[1]
    differing = [key for key, value in origin.items() if key in found and found[key] != value]
    if differing:
        what = {"scans": "from other scans"}.get(differing[0], f"with another {differing[0].replace('_', ' ')}")
        raise InputError(f"{weights.parent}: made {what}; give --overwrite, or another --work-dir")
    log.info("%s: finished before, skipped", weights.parent)
    return True


def open_stores(config, folder):
    """Open the packed slices of a work folder; refuse those of another config, seed or split, and one scan in both."""
    from data.h5_store import SliceStore
    from data.identity import refuse_same_scans

    stores = {part: SliceStore(folder / "h5" / f"pretrain_{part}.h5") for part in ("train", "val")}
    for store in stores.values():
        store.check_hash(config.hash_of_slices())
        store.check_origin(seed=config.seed, split=stores["train"].attributes.get("split"))
    parts = {part: store.subjects for part, store in stores.items()}
    refuse_same_scans(parts, stores["train"].hashes | stores["val"].hashes)
    return stores


def scans_of(stores):
    """Hash of all scans and constraint maps in the stores; nothing where these are from before it was written."""
    from data.identity import of_scans

    hashes = of_scans(stores["train"].hashes | stores["val"].hashes)
    return {"scans": fingerprint(hashes)} if hashes else {}


def seen_by(stores, earlier):
    """Subjects, scans and split that weights have seen, those of earlier stages too: no test subject may be there."""
    from data.identity import owners_of_images
    from data.splits import hash_of_split

    before = earlier[1] if earlier else {}
    scans = before.get("seen_scans", {}) | owners_of_images(stores["train"].hashes | stores["val"].hashes)
    lists = {part: store.subjects for part, store in stores.items()}
    names = flat(lists | {"earlier": before.get("subjects", {}), "before": before.get("seen", [])})
    split = stores["train"].attributes.get("split")
    return {"seen": names, "seen_scans": scans} | ({"split_hash": hash_of_split(split)} if split else {})


def read_earlier(config, source, folder, scans):
    """Read the weights that a stage starts from, of an earlier stage or a file: `(arrays, metadata)`, or None.

    An earlier stage of this config must have been trained on the same scans, as `scans_of` returns them.
    """
    from models.weights import read_weights

    if source is None:
        return None
    is_stage = source in config.pretraining.stages
    path = folder / "pretraining" / source / "weights.npz" if is_stage else Path(source)
    if not path.exists():
        cure = "run that stage first" if is_stage else "name a stage of this config, or a weights.npz"
        raise InputError(f"warm_start: {path} does not exist; {cure}")
    arrays, metadata = read_weights(path)
    if is_stage and metadata.get("config_hash") != config.hash_of_stage(source):
        raise InputError(f"warm_start: {path} was made with another config; run stage '{source}' with --overwrite")
    if is_stage and metadata.get("scans", scans.get("scans")) != scans.get("scans"):
        raise InputError(f"warm_start: {path} was made from other scans; run stage '{source}' with --overwrite")
    return arrays, metadata


def start_from(earlier, network, inputs):
    """Move earlier weights into a network whose input channels have these names, or none."""
    from models.weights import transfer

    if earlier:
        arrays, metadata = earlier
        report = transfer(arrays, network, source_contrasts=metadata.get("contrasts"), target_contrasts=inputs)
        log.info("%s", report.summary())


def flat(subjects):
    """All subject names in a nested dictionary of lists, sorted."""
    lists = [flat(part) if isinstance(part, dict) else part for part in subjects.values()]
    return sorted({subject for part in lists for subject in part})


def train(config, stage, stores, contrasts, **run):
    """Hand images, maps and the stage's settings to its method."""
    from data.slices import in_memory_if, stored_images, stored_maps
    from training import pretraining
    from training.devices import free_bytes

    parts = [stores[part] for part in ("train", "val")]
    is_one_by_one, is_volumes = config.pretraining.contrasts_as == "samples", config.network.rank == 3
    if is_volumes:
        images = [crops_of(config, stage, store, contrasts) for store in parts]
    else:
        images = [stored_images(store, contrasts, one_by_one=is_one_by_one) for store in parts]
        images = in_memory_if(images, config.data.resident, free_bytes() // 2)
    run["subjects"] = [subjects_of(store, is_volumes, len(contrasts) if is_one_by_one else 1) for store in parts]
    settings = stage.model_dump(exclude={"method", "warm_start", "space"}) | run
    settings |= {"filters": config.network.filters, "remat": config.network.remat}
    if stage.method == "regression":
        settings["block_px"] = stage.block_edge(config.slices.pixel_size)
        del settings["block_mm"]
        return pretraining.pretrain_regression(*images, **settings)
    if stage.method == "local":
        return pretraining.pretrain_local(*images, **settings)
    if stage.method == "global":
        places = [places_of(store, contrasts if is_one_by_one else [""]) for store in parts]
        return pretraining.pretrain_global(*images, places=places[0], validation_places=places[1], **settings)
    maps = [None if is_volumes else stored_maps(store, stage.space) for store in parts]
    names = ("temperature", "nearest_patches", "comparison", "anchor_is_positive")
    loss = {name: settings.pop(name) for name in names}
    head = {name: settings.pop(name) for name in ("patch_representation", "head_normalization", "projection_position")}
    settings["head"] = {name: value for name, value in head.items() if value}
    del settings["patch_mm"]
    settings |= {"patch_size": config.patch_edge(stage), "pixel_mm": None if is_volumes else config.slices.pixel_size}
    return pretraining.pretrain_constrained(images[0], maps[0], images[1], maps[1], loss_settings=loss, **settings)


def subjects_of(store, is_volumes, copies):
    """Subject of each image that is shown: of each volume, or of each slice, which is shown in so many copies."""
    import numpy as np

    return store.subjects if is_volumes else np.tile(np.array(store.subjects)[store.subject_index], copies)


def crops_of(config, stage, store, contrasts):
    """Open the volumes of a store, to be shown in crops; small sets are read into memory, once."""
    from data.crops import held_if_small, open_volumes
    from training.crops import Crops

    settings, space = config.crops, getattr(stage, "space", None)
    opened = open_volumes(store, store.subjects, contrasts, settings.size)
    volumes = held_if_small(opened, space, resident=config.data.resident)
    options = {"min_foreground": settings.min_foreground, "per_volume": settings.validation, "space": space}
    return Crops(volumes, tuple(settings.size), contrasts, **options)


def places_of(store, contrasts):
    """Volume and slice number of each sample; each contrast that is shown by itself makes a volume of its own."""
    import numpy as np

    subjects = np.array(store.subjects)[store.subject_index]
    volumes = [np.char.add(subjects, f", {contrast}" if contrast else "") for contrast in contrasts]
    return np.concatenate(volumes), np.tile(store.slice_index, len(contrasts))


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
