"""Pretraining: one function per method, from slices and constraint maps to the weights of a network.

Images are slices `(N, H, W, C)`, volumes `(N, H, W, D, C)`, or `training.crops.Crops`, which draws them from larger
volumes; the network has the rank of the images. A numpy array goes to the device once; a
`data.store.slices.StoredArray` is read from its file batch by batch.

Every function takes the training and the validation images first and a `Setup` last, and returns `(network, history)`.
For the validation images, pixels, views, regions and anchors are drawn only once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import keras
import numpy as np

from losses.constrained_contrastive import Selection
from losses.local_contrastive import Regions, draw_regions
from models.unet import build_encoder, build_unet
from training.augmentation import Changes, draw_changes
from training.batches import Batches, PartitionedBatches, Rows, assign_partitions, in_memory, size_of
from training.crops import Crops
from training.effective import PatchCounts, record_effective
from training.loop import RunOptions, fit
from training.masking import draw_hidden
from training.patches import assign_patch_classes, draw_compared, foreground_of, patch_centres
from training.schedules import Schedule
from training.steps import Task
from training.tasks import ConstrainedContrast, GlobalContrast, LocalContrast, Regression
from utils.runs import child_seed

VIEWS = ("a", "b")
Trained = tuple[keras.Model, list[dict[str, Any]]]


class Images(NamedTuple):
    """Images of one set, with their constraint maps and origin.

    Attributes:
        images: In [0, 1]; shapes as in the docstring of this module.
        maps: Their classes, 0 background, `(N, H, W[, D])`; None for `Crops`, which carry their own. If C contrasts are
            shown one at a time, there are C N images, contrast after contrast, and C of them share a map.
        places: Subject and slice number of each image, two arrays `(N,)`.
    """

    images: Any
    maps: Any = None
    places: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Setup:
    """Settings shared by all methods.

    Attributes:
        filters: Filters per level.
        schedule: Batches, epochs and learning rates.
        run: The run of the stage; its seed determines the weights and everything that is drawn.
        warm_start: Function that moves earlier weights into the network; None keeps the initial ones.
        remat: Compute activations twice instead of keeping them.
    """

    filters: Sequence[int]
    schedule: Schedule
    run: RunOptions
    warm_start: Callable[[keras.Model], None] | None = None
    remat: bool = False


@dataclass(frozen=True)
class Corruption:
    """Which pixels noise replaces, and how strong it is.

    Attributes:
        share: Share of the pixels that are replaced, in all contrasts at once.
        noise: Standard deviation of the noise.
        block_px: Edge of the square or cubic blocks that are replaced as a whole, pixels; None: single pixels.
    """

    share: float
    noise: float
    block_px: int | None = None


@dataclass(frozen=True)
class Views:
    """How two views of an image differ.

    Attributes:
        brightness: Largest shift of a view.
        contrast: Largest relative change of contrast of a view.
        crop_scale: Smallest and largest share of the field of view that a crop keeps.
    """

    brightness: float
    contrast: float
    crop_scale: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Decoder:
    """The decoder of a network and its projection head.

    Attributes:
        levels: Decoder levels to build and train; None: all.
        features: Size of the representation of a pixel or patch.
        patch_size: Edge of a patch, pixels of the decoder's output.
        head: Further options of `models.projection.project_patches`.
        freeze_encoder: Keep the encoder as the warm start left it.
    """

    levels: int | None
    features: int
    patch_size: int = 1
    head: Mapping[str, Any] = field(default_factory=dict)
    freeze_encoder: bool = False


@dataclass(frozen=True)
class Patches:
    """Which patches an anchor is compared with, apart from their numbers.

    Attributes:
        background: Also compare anchors with patches of the background.
        pixel_mm: Edge of a pixel in mm; None if unknown.
        positive_within_mm: Largest distance of a positive from its anchor; None: any. Needs `pixel_mm`.
    """

    background: bool = True
    pixel_mm: float | None = None
    positive_within_mm: float | None = None


def pretrain_regression(training: Images, validation: Images, corruption: Corruption, setup: Setup) -> Trained:
    """Train encoder and decoder to restore pixels that noise has replaced.

    Reference:
        arXiv 2205.13109, Sec. II.B; 10 % of the pixels and N(0, 0.01) as there.
    """
    shape = training.images.shape[1:]
    rank, seed = len(shape) - 1, setup.run.seed
    network = build_unet(shape, rank=rank, filters=setup.filters, head="reconstruction", seed=seed)

    def finish(batch, generator):
        count = size_of(batch)
        values = generator.standard_normal((count, *shape), dtype="float32") * np.float32(corruption.noise)
        corrupted = draw_hidden(count, shape[:-1], corruption.share, generator, corruption.block_px)
        return batch | {"corrupted": corrupted, "noise": values}

    batches = _batches([training.images, validation.images], finish, setup)
    return _train(Regression(network), batches, setup)


def pretrain_global(
    training: Images,
    validation: Images,
    loss: Callable,
    views: Views,
    features: int,
    n_partitions: int | None,
    setup: Setup,
) -> Trained:
    """Train the encoder to tell images apart.

    Args:
        training: Training images, with their places if there are partitions.
        validation: Validation images, likewise.
        loss: `simclr_loss`, or with partitions `anatomical_contrastive_loss`.
        views: How the two views of an image differ.
        features: Size of the projected representation.
        n_partitions: Parts into which a volume is cut along its slice axis; a batch holds one slice from each part of
            each of its volumes. None: no parts.
        setup: Settings shared by all methods.

    Reference:
        SimCLR: Chen et al., ICML 2020. Partitions: Chaitanya et al., NeurIPS 2020, G^{D-} and G^D.
    """
    shape = training.images.shape[1:]
    rank, seed = len(shape) - 1, setup.run.seed
    network = build_encoder(shape, rank=rank, filters=setup.filters, features=features, seed=seed)
    # The smallest crop may lie anywhere in the image; a larger one may reach beyond it, where it is black.
    changes = Changes(
        scale=views.crop_scale,
        translation=(1 - views.crop_scale[0]) / 2,
        brightness=views.brightness,
        contrast=views.contrast,
    )

    def finish(batch, generator):
        drawn = {view: draw_changes(size_of(batch), shape[:-1], generator, changes) for view in VIEWS}
        return batch | {f"{key}_{view}": value for view, found in drawn.items() for key, value in found.items()}

    sets, subjects = [training.images, validation.images], None
    if n_partitions:
        places = [one.places or ((), ()) for one in (training, validation)]
        subjects = [names for names, _ in places]
        partitions = [assign_partitions(names, slices, n_partitions) for names, slices in places]
        sets = [{"image": one, "partition": parts} for one, parts in zip(sets, partitions, strict=True)]
    batches = _batches(sets, finish, setup, subjects)
    return _train(GlobalContrast(network, loss), batches, setup)


def pretrain_local(
    training: Images,
    validation: Images,
    loss: Callable,
    views: Views,
    decoder: Decoder,
    regions: Regions,
    setup: Setup,
) -> Trained:
    """Train the decoder so that a region keeps its representation when intensities change.

    Args:
        training: Training images.
        validation: Validation images.
        loss: `region_contrast`.
        views: How the intensities of the two views of an image differ.
        decoder: The decoder; `features` counts those of each pixel of the projected map.
        regions: Regions of that map.
        setup: Settings shared by all methods.

    Reference:
        Chaitanya et al., NeurIPS 2020, L^R, with the encoder frozen as there.
    """
    network, factor = _network(training.images.shape[1:], decoder, setup)
    map_size = [length // factor for length in training.images.shape[1:-1]]

    def finish(batch, generator):
        count = size_of(batch)
        intensities = {
            f"{name}_{view}": (centre + generator.uniform(-largest, largest, count)).astype("float32")
            for view in VIEWS
            for name, centre, largest in (("brightness", 0, views.brightness), ("contrast", 1, views.contrast))
        }
        return batch | intensities | draw_regions(count, map_size, generator, *regions)

    task = LocalContrast(network, loss, map_size, regions.region_size, decoder.freeze_encoder)
    batches = _batches([training.images, validation.images], finish, setup)
    return _train(task, batches, setup)


def pretrain_constrained(
    training: Images,
    validation: Images,
    loss: Callable,
    decoder: Decoder,
    counts: PatchCounts,
    patches: Patches,
    setup: Setup,
) -> Trained:
    """Train encoder and decoder so that patches of one constraint class share a representation (CCL).

    Args:
        training: Training images and their constraint maps.
        validation: Validation images and theirs.
        loss: `constrained_contrastive_loss`, without the settings that select the patches to compare.
        decoder: The decoder; `features` counts those of each patch, or of each pixel if these are concatenated.
        counts: Numbers of nearest patches and anchors of an image.
        patches: Which patches are compared.
        setup: Settings shared by all methods.

    What these settings amount to on the data is logged and written to `effective.json` in the run folder.

    Reference:
        Umapathy et al., Med. Phys. 2024; 100 nearest patches and 20 anchors: authors' code. Shares are ours.
    """
    shape, run = training.images.shape[1:], setup.run
    network, factor = _network(shape, decoder, setup)
    edge_px = decoder.patch_size * factor

    def classes_of(maps):
        classes = assign_patch_classes(maps, edge_px)
        return classes if patches.background else np.where(classes > 0, classes, np.int16(-1))

    def finish(batch, generator):
        if "constraint_map" in batch:  # from crops, whose patches are not known in advance
            batch["patch_classes"] = classes_of(batch.pop("constraint_map"))
        batch["patch_classes"] = classes = batch["patch_classes"].astype("int32")
        return batch | draw_compared(classes, counts, largest["anchors"], generator)

    sets, most = [training.images, validation.images], network.output_shape[1]
    if not isinstance(training.images, Crops):
        sets = [_useful(one.images, classes_of(one.maps)) for one in (training, validation)]
        most = max(foreground_of(one["patch_classes"]).max(initial=1) for one in sets)
    largest = counts.largest(most)
    batches = _batches(sets, finish, setup, with_maps=True)
    shown = sets[0]["patch_classes"] if isinstance(sets[0], dict) else _patch_classes_of(batches[1])
    about = (network.output_shape[1], edge_px, patches.pixel_mm)
    record_effective(counts, foreground_of(shown), *about, run.folder, run.name)
    selection = Selection(counts.nearest, largest["nearest"] if counts.nearest_share else None)
    if patches.positive_within_mm is not None:
        centres = patch_centres(shape[:-1], edge_px) * patches.pixel_mm
        selection = selection._replace(positions=centres, positive_within=patches.positive_within_mm)
    return _train(ConstrainedContrast(network, loss, selection), batches, setup)


def _patch_classes_of(batches):
    """Patch classes of all images of fixed batches, `(n, P)`."""
    return np.concatenate([batches.batch(step)["patch_classes"] for step in range(batches.steps)])


def _useful(images, classes):
    """Images with more than one foreground patch, and the classes of their patches; C images may share one map."""
    classes = np.tile(classes, (len(images) // len(classes), 1))
    useful = np.flatnonzero((classes > 0).sum(1) > 1)
    return {"image": Rows(images, useful), "patch_classes": classes[useful]}


def _network(shape, decoder, setup):
    """Build encoder, decoder and patch projection; return the network and how many times coarser its map is."""
    levels = len(setup.filters) - 1
    built = levels if decoder.levels is None else decoder.levels
    network = build_unet(
        shape,
        rank=len(shape) - 1,
        filters=setup.filters,
        decoder_levels=built,
        head="projection",
        features=decoder.features,
        patch_size=decoder.patch_size,
        seed=setup.run.seed,
        **decoder.head,
    )
    return network, 2 ** (levels - built)


def _batches(sets, finish, setup, subjects=None, with_maps=False):
    """Return batches of the training set and of the validation set, which is fixed.

    A set is an array of images, a dictionary of arrays, or `Crops`, which bring constraint maps on request.
    """
    kind, pair = PartitionedBatches if subjects else Batches, []
    size, steps = setup.schedule.batch_size, setup.schedule.steps_per_epoch
    for place, part in enumerate(("training", "validation")):
        own_seed, one = child_seed(setup.run.seed, part), sets[place]
        options = {"steps": steps} if part == "training" else {"shuffle": False}
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


def _train(task: Task, batches: Sequence[Batches], setup: Setup) -> Trained:
    """Load earlier weights, if any, and train: the part common to all methods."""
    if setup.warm_start:
        setup.warm_start(task.network)
    task.hold(*({name: part.arrays[name].values for name in part.on_device} for part in batches))
    ready = task.sparing_memory(setup.remat).ready(setup.schedule.learning_rate)
    training, validation = batches
    history = fit(ready, training, validation, setup.schedule, replace(setup.run, with_bar=True))
    return task.network, history
