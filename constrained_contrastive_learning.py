"""Step 3 of 5: pretrain encoder and decoder, stage by stage.

    python constrained_contrastive_learning.py --config configs/lgg_tcga.yaml

Reads   h5/pretrain_train.h5 and h5/pretrain_val.h5 in the work dir (step 2).
Writes  for each stage of the config, pretraining/<stage>/ with weights.npz (best on the fixed validation set),
        weights_last.npz, history.csv, curves.png and a run record; for constrained stages also effective.json (the
        numbers that their lengths and shares amount to); with cross-validation, one such folder per fold.
Takes   minutes (CPU, small images) to hours. Finished stages are skipped; an interrupted one resumes.
Next    python finetune_segmentation.py --config FILE
"""

import dataclasses
import functools
import itertools
import json
import logging
from pathlib import Path

from utils.checks import InputError
from utils.command_line import add_training_options, chosen_sinks, from_command_line, positive
from utils.config.schema import channel_names, fingerprint
from utils.environment import make_deterministic
from utils.runs import child_seed, drop_checkpoint, exit_code_of, open_run, write_json
from utils.work_dir import WEIGHTS

log = logging.getLogger("mrccl")
HEAD_OPTIONS = ("patch_representation", "head_normalization")


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
    from data.splits import chosen_folds
    from training.devices import check_batch_sizes, data_parallel

    # In the config's order: a stage comes before those that start from it.
    stages = [name for name in config.pretraining.stages if not options.method or name in options.method]
    sizes = {name: config.pretraining.stages[name].training.batch_size for name in stages}
    check_batch_sizes(options.devices, {f"pretraining.stages.{name}.training": size for name, size in sizes.items()})
    splits = chosen_folds(config.work.splits_with("pretrain_train"), options.folds)
    sinks = chosen_sinks(options)
    with data_parallel(options.devices):
        for work, name in itertools.product(splits, stages):
            pretrain(config, name, work, options.overwrite, **sinks)
    script = "segmentation" if config.finetuning or not config.synthesis else "synthesis"
    log.info("next: python finetune_%s.py %s", script, options.again)


def pretrain(config, name, work, overwrite, **sinks):
    """Train one stage of one split, unless it is finished."""
    from evaluation.report.figures import save_training_curves
    from models.weights import save_weights
    from training.devices import use_precision
    from training.loop import RunOptions
    from training.tracking import tracked

    stage, target = config.pretraining.stages[name], work.stage(name)
    stores = open_stores(config, work)
    contrasts = channel_names(config.data.contrasts, config.pretraining.contrasts)
    # A network that was shown the contrasts one by one has an input for no particular contrast.
    inputs = contrasts if config.pretraining.contrasts_as == "channels" else None
    made_from = provenance(config, name, stores)
    if is_finished(target, made_from, overwrite):
        return
    earlier = read_earlier(config, stage.warm_start, work, made_from.scans)
    send = tracked(target, config.plain(), made_from.config_hash, sinks.get("with_mlflow"))
    with open_run(target, config.plain(), config.seed), send:
        if (target / WEIGHTS).exists():  # a stage that is redone must not count as finished when interrupted
            drop_checkpoint(target)
            (target / WEIGHTS).unlink()
        if earlier:
            log.info("warm start from %s", stage.warm_start)
        write_json(target / "subjects.json", made_from.others["subjects"])
        use_precision(stage.training.mixed_precision)
        seed, tag = child_seed(config.seed, "pretraining", name), json.dumps(made_from.as_dict())
        run = RunOptions(target, tag, work.name_of(target), seed, **sinks)
        warm_start = functools.partial(start_from, earlier, inputs) if earlier else None
        network, history = train(config, stage, stores, contrasts, run, warm_start)
        shown = {"contrasts": inputs} | ({"contrasts_one_by_one": contrasts} if inputs is None else {})
        note = "Simulated scans. " if config.data.simulated else ""
        save_training_curves(history, target / "curves.png", title=f"{note}{config.name}: {name}")
        # Written last: a folder with weights.npz counts as a finished stage.
        save_weights(network, target / WEIGHTS, **seen_by(stores, earlier), **shown, **made_from.as_dict())
        drop_checkpoint(target)
    log.info("wrote %s", target)


def provenance(config, name, stores):
    """Return what a stage is made from."""
    from data.identity import of_scans
    from data.splits import hash_of_split
    from utils.provenance import Provenance

    hashes, split = of_scans(hashes_of(stores)), stores["train"].attributes.get("split")
    return Provenance(
        config.hash_of_stage(name),
        config.seed,
        hash_of_split(split) if split else None,
        fingerprint(hashes) if hashes else None,
        {"subjects": {part: store.subjects for part, store in stores.items()}},
    )


def is_finished(folder, made_from, overwrite):
    """Tell whether a stage is finished; InputError if it was made with another config, seed or set of subjects."""
    from models.weights import Pretrained

    if overwrite or not (folder / WEIGHTS).exists():
        return False
    drop_checkpoint(folder)  # left by a killed run; redoing the stage must not resume from it
    made_from.refuse_other(Pretrained.read(folder / WEIGHTS).made_from, folder)
    log.info("%s: finished before, skipped", folder)
    return True


def open_stores(config, work):
    """Open the packed slices of a split; refuse another config, seed or split, and a scan that is in both sets."""
    from data.identity import refuse_same_scans
    from data.store.store import SliceStore

    stores = {part: SliceStore(work.store(f"pretrain_{part}")) for part in ("train", "val")}
    for store in stores.values():
        store.check_hash(config.hash_of_slices())
        store.check_origin(seed=config.seed, split=stores["train"].attributes.get("split"))
    parts = {part: store.subjects for part, store in stores.items()}
    refuse_same_scans(parts, hashes_of(stores))
    return stores


def hashes_of(stores):
    """Return the hashes of the files of all subjects."""
    return stores["train"].hashes | stores["val"].hashes


def seen_by(stores, earlier):
    """Return the subjects and scans used for weights, including earlier stages: none may be a test subject."""
    from data.identity import owners_of_images

    seen = {subject for store in stores.values() for subject in store.subjects} | (earlier.seen if earlier else set())
    scans = (dict(earlier.seen_scans) if earlier else {}) | owners_of_images(hashes_of(stores))
    return {"seen": sorted(seen), "seen_scans": scans}


def read_earlier(config, source, work, scans):
    """Read the weights that a stage starts from, those of an earlier stage or a file; None if it starts from none.

    An earlier stage of this config must have been trained on the same scans, whose hash is `scans`.
    """
    from models.weights import Pretrained

    if source is None:
        return None
    is_stage = source in config.pretraining.stages
    path = work.stage_weights(source) if is_stage else Path(source)
    if not path.exists():
        cure = "run that stage first" if is_stage else "name a stage of this config, or a weights.npz"
        raise InputError(f"warm_start: {path} does not exist; {cure}")
    found = Pretrained.read(path)
    if is_stage and found.made_from.get("config_hash") != config.hash_of_stage(source):
        raise InputError(f"warm_start: {path} was made with another config; run stage '{source}' with --overwrite")
    if is_stage and found.made_from.get("scans") != scans:
        raise InputError(f"warm_start: {path} was made from other scans; run stage '{source}' with --overwrite")
    return found


def start_from(earlier, inputs, network):
    """Copy earlier weights into a network whose input channels are `inputs`; None: no particular contrasts."""
    log.info("%s", earlier.move_into(network, inputs).summary())


def train(config, stage, stores, contrasts, run, warm_start=None):
    """Call the method of a stage with its images, maps and settings."""
    from losses.local_contrastive import Regions
    from training import pretraining
    from training.effective import PatchCounts
    from training.schedules import Schedule

    network, schedule = config.network, Schedule.of(stage.training.model_dump())
    run = dataclasses.replace(run, subjects=subjects_of(config, stores, contrasts))
    setup = pretraining.Setup(network.filters, schedule, run, warm_start, network.remat)
    shown = [images_of(config, stage, store, contrasts) for store in stores.values()]
    shown, loss = in_memory(config, shown), loss_of(stage)
    if stage.method == "regression":
        block_px = stage.block_edge(config.slices.pixel_size)
        corruption = pretraining.Corruption(stage.corrupted_share, stage.noise, block_px)
        return pretraining.pretrain_regression(*shown, corruption, setup)
    if stage.method == "global":
        views = pretraining.Views(stage.brightness, stage.contrast, stage.crop_scale)
        return pretraining.pretrain_global(*shown, loss, views, stage.features, stage.n_partitions, setup)
    if stage.method == "local":
        views = pretraining.Views(stage.brightness, stage.contrast)
        decoder = pretraining.Decoder(stage.decoder_levels, stage.features, freeze_encoder=stage.freeze_encoder)
        regions = Regions(stage.region_size, stage.regions, stage.negatives)
        return pretraining.pretrain_local(*shown, loss, views, decoder, regions, setup)
    head = {name: value for name in HEAD_OPTIONS if (value := getattr(stage, name))}
    decoder = pretraining.Decoder(stage.decoder_levels, stage.features, config.patch_edge(stage), head)
    counts = PatchCounts(stage.nearest_patches, stage.anchors_per_slice, stage.nearest_share, stage.anchors_share)
    pixel_mm = None if network.rank == 3 else config.slices.pixel_size
    patches = pretraining.Patches(stage.background_patches, pixel_mm, stage.positive_within_mm)
    return pretraining.pretrain_constrained(*shown, loss, decoder, counts, patches, setup)


def loss_of(stage):
    """Return the loss of a stage with its settings bound; None for regression, whose loss has no settings."""
    from losses.constrained_contrastive import constrained_contrastive_loss
    from losses.global_contrastive import anatomical_contrastive_loss, simclr_loss
    from losses.local_contrastive import region_contrast

    if stage.method == "regression":
        return None
    loss, others = {"global": simclr_loss, "local": region_contrast}.get(stage.method), {}
    if stage.method == "global" and stage.n_partitions:
        loss, others = anatomical_contrastive_loss, {"same_part_attracts": stage.partition_positives}
    if stage.method == "constrained":
        loss = constrained_contrastive_loss
        others = {"comparison": stage.comparison, "anchor_is_positive": stage.anchor_is_positive}
    return functools.partial(loss, temperature=stage.temperature, **others)


def images_of(config, stage, store, contrasts):
    """Return what a stage is shown from a store: slices or crops of volumes, their maps and positions."""
    from data.store.slices import stored_images, stored_maps
    from training.pretraining import Images

    if config.network.rank == 3:
        return Images(crops_of(config, stage, store, contrasts))
    is_one_by_one = config.pretraining.contrasts_as == "samples"
    maps = stored_maps(store, stage.space) if stage.method == "constrained" else None
    places = places_of(store, contrasts if is_one_by_one else [""])
    return Images(stored_images(store, contrasts, one_by_one=is_one_by_one), maps, places)


def in_memory(config, shown):
    """Read the images of all sets into memory if they fit; crops are left as they are."""
    from data.store.slices import in_memory_if
    from training.devices import free_bytes

    if config.network.rank == 3:
        return shown
    images = in_memory_if([one.images for one in shown], config.data.resident, free_bytes() // 2)
    return [one._replace(images=array) for one, array in zip(shown, images, strict=True)]


def subjects_of(config, stores, contrasts):
    """Return the subject of each image of both sets: of each volume, or of each slice (once per contrast if alone)."""
    import numpy as np

    if config.network.rank == 3:
        return tuple(store.subjects for store in stores.values())
    copies = len(contrasts) if config.pretraining.contrasts_as == "samples" else 1
    return tuple(np.tile(np.array(store.subjects)[store.subject_index], copies) for store in stores.values())


def crops_of(config, stage, store, contrasts):
    """Open the volumes of a store for cropping; small sets are read into memory once."""
    from data.store.crops import held_if_small, open_volumes
    from training.crops import Crops

    settings, space = config.crops, getattr(stage, "space", None)
    opened = open_volumes(store, store.subjects, contrasts, settings.size)
    volumes = held_if_small(opened, space, resident=config.data.resident)
    options = {"min_foreground": settings.min_foreground, "per_volume": settings.validation, "space": space}
    return Crops(volumes, tuple(settings.size), contrasts, **options)


def places_of(store, contrasts):
    """Return volume and slice number of each sample; a contrast shown by itself counts as a separate volume."""
    import numpy as np

    subjects = np.array(store.subjects)[store.subject_index]
    volumes = [np.char.add(subjects, f", {contrast}" if contrast else "") for contrast in contrasts]
    return np.concatenate(volumes), np.tile(store.slice_index, len(contrasts))


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
