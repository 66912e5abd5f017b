"""The simulated brain with a tumour: MNI152 tissue maps, deformed for each subject, with core, rim and oedema.

Real brain anatomy without a download: nilearn's wheel contains the grey and white matter maps of the ICBM 2009a
nonlinear symmetric atlas (Fonov et al., NeuroImage 2011). Tumour sizes and shapes are ours.
"""

from functools import lru_cache

import numpy as np
from scipy import ndimage

from data.simulation.anatomy import Canvas, rotation, smooth_field

LABELS = {"necrosis": 1, "oedema": 2, "enhancing_tumour": 3}  # BraTS 2023 values
CENTRE = (0.0, -18.0, 6.0)
FIELD_OF_VIEW = (160.0, 192.0, 156.0)
SHAPE = (80, 96, 26)


@lru_cache(maxsize=1)
def atlas():
    """Return MNI152 white matter, grey matter and brain mask `(3, x, y, z)` in [0, 1], and world-to-voxel `(4, 4)`."""
    from nilearn import datasets

    images = [
        datasets.load_mni152_wm_template(resolution=2),
        datasets.load_mni152_gm_template(resolution=2),
        datasets.load_mni152_brain_mask(resolution=2),
    ]
    return np.stack([image.get_fdata(dtype=np.float32) for image in images]), np.linalg.inv(images[0].affine)


def brain_anatomy(axes, generator):
    """Draw one subject's skull-stripped brain with one tumour.

    Args:
        axes: Positions of the grid points along x, y, z in mm.
        generator: `numpy.random.Generator`.

    Returns:
        `data.simulation.anatomy.Anatomy`; labels as in `LABELS`.
    """
    points = _deformed_points(axes, generator)
    seed_point = _tumour_place(generator)
    core = float(np.clip(19 * np.exp(0.35 * generator.standard_normal()), 9, 30))
    offset = points - np.asarray(seed_point, np.float32)[:, None, None, None]
    distance = np.linalg.norm(offset, axis=0)
    # Mass effect: before the tumour grew, tissue around the core was closer to its centre.
    push = generator.uniform(0.15, 0.35) * np.exp(-((distance / (2.2 * core)) ** 2))
    white, grey, inside = _sample(points - push * offset)
    canvas = Canvas(points, "air")
    _paint_tissues(canvas, white, grey, inside)
    _paint_vessels(canvas, inside.ravel() > 0.5, generator)
    _paint_white_matter_lesions(canvas, generator)
    _paint_tumour(canvas, axes, distance.ravel(), core, white.ravel(), generator)
    return canvas.anatomy(axes)


def _deformed_points(axes, generator):
    """Return MNI coordinates of the grid points: scaled per axis, rotated, shifted and deformed, `(3, x, y, z)`."""
    grid = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    bend = smooth_field(axes, 60.0, generator, fields=3) * np.float32(3.0)
    wrinkle = smooth_field(axes, 20.0, generator, fields=3) * np.float32(1.0)
    turn = rotation(*generator.normal(0, (5, 3, 4)))
    scale = np.exp(generator.normal(0, 0.04, 3))
    centre = np.array(CENTRE)
    moved = grid - (centre + generator.normal(0, 2.5, 3)).astype(np.float32)[:, None, None, None]
    turned = np.einsum("ij,jxyz->ixyz", (turn / scale[:, None]).astype(np.float32), moved)
    return turned + centre.astype(np.float32)[:, None, None, None] + bend + wrinkle


def _sample(points):
    """Return white matter, grey matter and brain mask at MNI points `(3, x, y, z)`, linearly interpolated."""
    maps, to_voxels = atlas()
    voxels = np.einsum("ij,jxyz->ixyz", to_voxels[:3, :3].astype(np.float32), points)
    voxels += to_voxels[:3, 3].astype(np.float32)[:, None, None, None]
    return [ndimage.map_coordinates(tissue, voxels, order=1, output=np.float32) for tissue in maps]


def _tumour_place(generator):
    """Return a point (MNI mm) in cerebral white matter, at least 14 mm inside the brain and above the brain stem."""
    (white, _, inside), to_voxels = atlas()
    depth = ndimage.distance_transform_edt(inside > 0.5, sampling=2.0)
    to_world = np.linalg.inv(to_voxels)
    candidates = np.argwhere((white > 0.6) & (depth > 14)) @ to_world[:3, :3].T + to_world[:3, 3]
    candidates = candidates[(candidates[:, 2] > -8) & (np.abs(candidates[:, 0]) > 14)]
    return candidates[generator.integers(len(candidates))]


def _paint_tissues(canvas, white, grey, inside):
    """Paint whichever of white matter, grey matter and CSF is most probable inside the brain mask."""
    fluid = np.clip(inside - white - grey, 0, None)
    likeliest = np.argmax(np.stack([fluid, grey, white]), axis=0).ravel()
    brain = inside.ravel() > 0.5
    for value, tissue in enumerate(("csf", "grey_matter", "white_matter")):
        canvas.paint(np.flatnonzero(brain & (likeliest == value)), tissue)


def _paint_vessels(canvas, inside, generator):
    """Paint the large vessels that enhance: middle and anterior cerebral arteries, inner veins, straight sinus."""
    courses = [
        ((6, 2, -16), (44, 0, -8)),
        ((-6, 2, -16), (-44, 0, -8)),
        ((2, 8, -14), (1, 38, 20)),
        ((-2, 8, -14), (-1, 38, 20)),
        ((4, -12, 16), (3, -40, 10)),
        ((-4, -12, 16), (-3, -40, 10)),
        ((0, -40, 10), (0, -78, -8)),
        ((0, -60, 76), (0, 20, 76)),
    ]
    for start, end in courses:
        ends = generator.normal((start, end), 1.5)
        index = canvas.tube(*ends, generator.uniform(1.6, 2.6), 3.0, generator.uniform(0, 6))[0]
        canvas.paint(index[inside[index]], "blood")


def _paint_white_matter_lesions(canvas, generator):
    """Paint small unlabelled white matter lesions, as many adults have: bright on T2 and FLAIR, but not tumour."""
    (white, _, _), to_voxels = atlas()
    to_world = np.linalg.inv(to_voxels)
    candidates = np.argwhere(white > 0.9) @ to_world[:3, :3].T + to_world[:3, 3]
    candidates = candidates[candidates[:, 2] > 8]
    for _ in range(generator.poisson(5)):
        centre = candidates[generator.integers(len(candidates))]
        index = canvas.ellipsoid(centre, generator.uniform(1.5, 4.5, 3), rotation(*generator.uniform(0, 180, 3)))
        canvas.paint(index, "white_matter_lesion", over=("white_matter",))


def _paint_tumour(canvas, axes, distance, core, white, generator):
    """Paint oedema, then the enhancing rim, then the necrotic core.

    Args:
        canvas: `Canvas` with the healthy brain.
        axes: Positions of the grid points along x, y, z in mm.
        distance: Distance of every point to the tumour's centre, mm, `(points,)`.
        core: Mean outer radius of the rim, mm.
        white: White matter fraction before the tumour, `(points,)`; oedema follows white matter.
        generator: `numpy.random.Generator`.
    """
    tissue = ("white_matter", "grey_matter", "white_matter_lesion", "blood")
    rough, edge, width, reach = smooth_field(axes, 14.0, generator, fields=4).reshape(4, -1)
    shaped = distance * np.exp(0.22 * rough)
    spread = generator.uniform(6, 20)
    oedema = shaped + 6 * (1 - white) + 2 * edge < core + spread * np.exp(0.25 * reach)
    islands = ndimage.label(oedema.reshape(canvas.shape))[0].ravel()
    connected = np.flatnonzero(islands == islands[np.argmin(distance)])
    canvas.paint(connected, "oedema", label=LABELS["oedema"], over=tissue)
    rim = connected[shaped[connected] < core]
    canvas.paint(rim, "enhancing_tumour", label=LABELS["enhancing_tumour"], over=(*tissue, "oedema", "csf"))
    thickness = generator.uniform(0.2, 0.45) * core * np.exp(0.3 * width)
    necrosis = rim[shaped[rim] + thickness[rim] < core]
    canvas.paint(necrosis, "necrosis", label=LABELS["necrosis"], over=("enhancing_tumour",))
