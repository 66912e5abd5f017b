"""Pretraining: one function per method, from slices and constraint maps to the weights of a network.

Images are slices `(N, H, W, C)`, volumes `(N, H, W, D, C)`, or `training.crops.Crops`, which draws them from larger
volumes; the network has the rank of the images. A numpy array goes to the device once; a `data.slices.StoredArray` is
read from its file batch by batch.

The keyword arguments that all functions share:

    filters: Filters per level.
    training: Dictionary with `steps_per_epoch`, `batch_size` and what `training.schedules.Schedule` takes.
    seed: Seed of the stage.
    **run: `warm_start` (function that moves weights into the network), `folder`, `tag`, `name`, `remat` (compute
        activations twice instead of keeping them), `subjects` (of the training and of the validation images, for
        messages).

All return `(network, history)`.
"""

import numpy as np

from losses.local_contrastive import draw_regions
from models.unet import build_encoder, build_unet
from training.augmentation import draw_changes
from training.batches import Batches, PartitionedBatches, Rows, assign_partitions, in_memory, size_of
from training.checkpoints import fit
from training.crops import Crops
from training.effective import PatchCounts, record_effective
from training.masking import draw_hidden
from training.patches import assign_patch_classes, draw_compared, foreground_of, patch_centres
from training.schedules import Schedule
from training.tasks import ConstrainedContrast, GlobalContrast, LocalContrast, Regression
from utils.runs import child_seed

VIEWS = ("a", "b")


def pretrain_regression(
    images, validation_images, *, filters, corrupted_share, noise, training, seed, block_px=None, **run
):
    """Train encoder and decoder to restore pixels that noise has replaced.

    Args:
        images: Training images, in [0, 1].
        validation_images: Validation images, whose corrupted pixels are drawn once.
        filters: Filters per level.
        corrupted_share: Share of the pixels that are replaced, in all contrasts at once.
        noise: Standard deviation of the noise.
        training: See above.
        seed: See above.
        block_px: Edge of the square or cubic blocks that are replaced as a whole, pixels; None: single pixels.
        **run: See above.

    Reference:
        arXiv 2205.13109, Sec. II.B; 10 % of the pixels and N(0, 0.01) as there.
    """
    shape = images.shape[1:]
    network = build_unet(shape, rank=len(shape) - 1, filters=filters, head="reconstruction", seed=seed)

    def finish(batch, generator):
        count = size_of(batch)
        values = generator.standard_normal((count, *shape), dtype="float32") * np.float32(noise)
        corrupted = draw_hidden(count, shape[:-1], corrupted_share, generator, block_px)
        return batch | {"corrupted": corrupted, "noise": values}

    batches = _batches([images, validation_images], finish, training, seed)
    return _train(Regression(network), batches, training, **run)


def pretrain_global(
    images,
    validation_images,
    *,
    filters,
    features,
    temperature,
    crop_scale,
    brightness,
    contrast,
    training,
    seed,
    n_partitions=None,
    partition_positives=False,
    places=None,
    validation_places=None,
    **run,
):
    """Train the encoder to tell images apart.

    Args:
        images: Training images, in [0, 1].
        validation_images: Validation images, whose views are fixed.
        filters: Filters per level.
        features: Size of the projected representation.
        temperature: Softmax temperature.
        crop_scale: Smallest and largest share of the field of view that a crop keeps.
        brightness: Largest shift of a view.
        contrast: Largest relative change of contrast of a view.
        training: See above.
        seed: See above.
        n_partitions: Parts into which a volume is cut along its slice axis; slices of one part do not repel each
            other, and a batch holds one slice of each part of each of its volumes. None: SimCLR.
        partition_positives: With partitions, slices of one part of different volumes attract each other.
        places: With partitions, subject and slice number of each training image, two arrays `(N,)`.
        validation_places: The same of the validation images.
        **run: See above.

    Reference:
        SimCLR: Chen et al., ICML 2020. Partitions: Chaitanya et al., NeurIPS 2020, G^{D-}; with
        partition_positives G^D, which is the default of their code.
    """
    shape = images.shape[1:]
    network = build_encoder(shape, rank=len(shape) - 1, filters=filters, features=features, seed=seed)

    def finish(batch, generator):
        # The smallest crop may lie anywhere in the image; a larger one may reach beyond it, where it is black.
        views = {
            view: draw_changes(
                size_of(batch),
                shape[:-1],
                generator,
                scale=crop_scale,
                translation=(1 - crop_scale[0]) / 2,
                brightness=brightness,
                contrast=contrast,
            )
            for view in VIEWS
        }
        return batch | {f"{key}_{view}": value for view, changes in views.items() for key, value in changes.items()}

    sets, subjects = [images, validation_images], None
    if n_partitions:
        subjects = [places[0], validation_places[0]]
        partitions = [assign_partitions(*place, n_partitions) for place in (places, validation_places)]
        sets = [{"image": one, "partition": parts} for one, parts in zip(sets, partitions, strict=True)]
    batches = _batches(sets, finish, training, seed, subjects)
    return _train(GlobalContrast(network, temperature, partition_positives), batches, training, **run)


def pretrain_local(
    images,
    validation_images,
    *,
    filters,
    decoder_levels,
    freeze_encoder,
    features,
    region_size,
    regions,
    negatives,
    temperature,
    brightness,
    contrast,
    training,
    seed,
    **run,
):
    """Train the decoder so that a region keeps its representation when intensities change.

    Args:
        images: Training images, in [0, 1].
        validation_images: Validation images, whose views and regions are fixed.
        filters: Filters per level.
        decoder_levels: Decoder levels that are built and trained; None: all.
        freeze_encoder: Leave the encoder as the warm start made it.
        features: Features per pixel of the projected map.
        region_size: Edge of a region, pixels of the decoder's output.
        regions: Regions per image.
        negatives: Other regions that each is contrasted with.
        temperature: Softmax temperature.
        brightness: Largest shift of a view.
        contrast: Largest relative change of contrast of a view.
        training: See above.
        seed: See above.
        **run: See above.

    Reference:
        Chaitanya et al., NeurIPS 2020, L^R, encoder frozen as there.
    """
    network, factor = _decoder(images, filters, decoder_levels, features, patch_size=1, seed=seed)
    map_size = [length // factor for length in images.shape[1:-1]]

    def finish(batch, generator):
        count = size_of(batch)
        intensities = {
            f"{name}_{view}": (centre + generator.uniform(-largest, largest, count)).astype("float32")
            for view in VIEWS
            for name, centre, largest in (("brightness", 0, brightness), ("contrast", 1, contrast))
        }
        return batch | intensities | draw_regions(count, map_size, generator, region_size, regions, negatives)

    settings = {"region_size": region_size, "temperature": temperature}
    task = LocalContrast(network, map_size, settings, freeze_encoder)
    batches = _batches([images, validation_images], finish, training, seed)
    return _train(task, batches, training, **run)


def pretrain_constrained(
    images,
    constraint_maps,
    validation_images,
    validation_maps,
    *,
    filters,
    decoder_levels,
    patch_size,
    features,
    anchors_per_slice,
    loss_settings,
    training,
    seed,
    background_patches=True,
    nearest_share=None,
    anchors_share=None,
    pixel_mm=None,
    positive_within_mm=None,
    head=None,
    **run,
):
    """Train encoder and decoder so that patches of one constraint class share a representation (CCL).

    Args:
        images: Training images, in [0, 1].
        constraint_maps: Their classes, 0 background, `(N, H, W[, D])`; None for `Crops`, which bring them. Of C
            contrasts shown one by one there are C N images, contrast after contrast, and C of them share a map.
        validation_images: Validation images.
        validation_maps: Their classes; anchors on them are drawn once.
        filters: Filters per level.
        decoder_levels: Decoder levels that are built and trained; None: all.
        patch_size: Edge of a patch, pixels of the decoder's output.
        features: Size of a patch's representation.
        anchors_per_slice: Anchors A, per image; None with `anchors_share`.
        loss_settings: Keyword arguments of `constrained_contrastive_loss`.
        training: See above.
        seed: See above.
        background_patches: Compare anchors with patches of the background as well.
        nearest_share: Nearest patches as a share of the foreground patches of an image, in place of the number.
        anchors_share: Anchors, likewise.
        pixel_mm: Edge of a pixel in mm; None where it is not known.
        positive_within_mm: Largest distance of a positive from its anchor; None: any. Needs `pixel_mm`.
        head: Options of `models.projection.project_patches`; None: its defaults.
        **run: See above.

    What these numbers come to on the data goes to the log and to `effective.json` in the folder.

    Reference:
        Umapathy et al., Med. Phys. 2024; 100 nearest patches and 20 anchors: authors' code. Shares are ours.
    """
    counts = PatchCounts(loss_settings.get("nearest_patches"), anchors_per_slice, nearest_share, anchors_share)
    options = {"patch_size": patch_size, "seed": seed, **(head or {})}
    network, factor = _decoder(images, filters, decoder_levels, features, **options)

    def classes_of(maps):
        classes = assign_patch_classes(maps, patch_size * factor)
        return classes if background_patches else np.where(classes > 0, classes, np.int16(-1))

    def finish(batch, generator):
        if "constraint_map" in batch:  # of crops, whose patches are not known before
            batch["patch_classes"] = classes_of(batch.pop("constraint_map"))
        batch["patch_classes"] = classes = batch["patch_classes"].astype("int32")
        return batch | draw_compared(classes, counts, largest["anchors"], generator)

    sets, most, patches = [images, validation_images], network.output_shape[1], network.output_shape[1]
    if not isinstance(images, Crops):
        pairs = zip(sets, (constraint_maps, validation_maps), strict=True)
        sets = [_useful(pictures, classes_of(maps)) for pictures, maps in pairs]
        most = max(foreground_of(one["patch_classes"]).max(initial=1) for one in sets)
    largest = counts.largest(most)
    batches = _batches(sets, finish, training, seed, with_maps=True)
    shown = sets[0]["patch_classes"] if isinstance(sets[0], dict) else _patch_classes_of(batches[1])
    record_effective(counts, foreground_of(shown), patches, patch_size * factor, pixel_mm, run["folder"], run["name"])
    settings = loss_settings | ({"most_nearest": largest["nearest"]} if nearest_share else {})
    if positive_within_mm is not None:
        centres = patch_centres(images.shape[1:-1], patch_size * factor) * pixel_mm
        settings |= {"positions": centres, "positive_within": positive_within_mm}
    return _train(ConstrainedContrast(network, settings), batches, training, **run)


def _patch_classes_of(batches):
    """Patch classes of all images of fixed batches, `(n, P)`."""
    return np.concatenate([batches.batch(step)["patch_classes"] for step in range(batches.steps)])


def _useful(images, classes):
    """Images that have something to compare, and the classes of their patches; C images may share one map."""
    classes = np.tile(classes, (len(images) // len(classes), 1))
    useful = np.flatnonzero((classes > 0).sum(1) > 1)
    return {"image": Rows(images, useful), "patch_classes": classes[useful]}


def _decoder(images, filters, decoder_levels, features, patch_size, seed, **head):
    """Build encoder, full or partial decoder and patch projection; returns it and how much coarser its output is."""
    levels = len(filters) - 1
    built = levels if decoder_levels is None else decoder_levels
    shape = images.shape[1:]
    network = build_unet(
        shape,
        rank=len(shape) - 1,
        filters=filters,
        decoder_levels=built,
        head="projection",
        features=features,
        patch_size=patch_size,
        seed=seed,
        **head,
    )
    return network, 2 ** (levels - built)


def _batches(sets, finish, training, seed, subjects=None, with_maps=False):
    """Batches of the training set, and of the validation set, which is fixed.

    A set is an array of images, a dictionary of arrays, or `Crops`, which come with constraint maps if asked for.
    """
    kind, pair = PartitionedBatches if subjects else Batches, []
    for place, part in enumerate(("training", "validation")):
        size, own_seed, one = training["batch_size"], child_seed(seed, part), sets[place]
        options = {"steps": training["steps_per_epoch"]} if part == "training" else {"shuffle": False}
        options["finish"] = finish
        if isinstance(one, Crops):
            pair.append(one.batches(size, own_seed, with_maps=with_maps, **options))
            continue
        options |= {"subjects": subjects[place]} if subjects else {}
        arrays = one if isinstance(one, dict) else {"image": one}
        if not isinstance(arrays["image"], Rows):
            arrays = arrays | {"image": Rows(arrays["image"])}
        pair.append(kind(arrays, size, own_seed, on_device=in_memory(arrays), **options))
    return pair


def _train(task, batches, training, *, warm_start, folder, tag, name, remat=False, **run):
    """Start from earlier weights and train; the part that all methods share."""
    warm_start(task.network)
    task.hold(*({name: part.arrays[name].values for name in part.on_device} for part in batches))
    history = fit(
        task.sparing_memory(remat).ready(training["learning_rate"]),
        *batches,
        folder=folder,
        tag=tag,
        name=name,
        with_bar=True,
        schedule=Schedule.of(training),
        **run,
    )
    return task.network, history
