"""The simulated abdomen: liver, spleen and kidneys among bowel, vessels, spine, muscle and fat.

Sizes and positions are ours, in mm, based on cross-sectional atlas views of the upper abdomen; organ volumes match
those of adults (kidney 120-200 mL, liver 1-2 L, spleen 100-350 mL in the field of view). A kidney's label is cortex and
medulla, without sinus and pelvis; the liver's includes its vessels. The origin lies in front of the spine at the level
of the renal hila.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data.simulation.anatomy import Canvas, rotation, smooth_field

LABELS = {"right_kidney": 1, "left_kidney": 2, "liver": 3, "spleen": 4}
CENTRE = (0.0, 0.0, -4.0)
FIELD_OF_VIEW = (384.0, 320.0, 144.0)
SHAPE = (96, 80, 16)
RIGHT, LEFT = 1, -1


@dataclass(frozen=True)
class Torso:
    """One subject's body: half-axes of the muscular trunk, wall and skin-fat thickness, fat around the kidneys (mm)."""

    half_width: float
    half_depth: float
    wall: float
    skin_fat: float
    renal_fat: float

    @property
    def cavity(self):
        """Half-axes (x, y) of the abdominal cavity, mm."""
        return self.half_width - self.wall, self.half_depth - self.wall


def renal_anatomy(axes, generator):
    """Draw one subject's abdomen.

    Later structures displace earlier ones: first the bowel, which is soft, then liver and spleen, then what lies behind
    the peritoneum.

    Args:
        axes: Positions of the grid points along x, y, z in mm.
        generator: `numpy.random.Generator`.

    Returns:
        `data.simulation.anatomy.Anatomy`; labels as in `LABELS`.
    """
    canvas = Canvas(_deformed_points(axes, generator), "air")
    fatness = generator.standard_normal()
    torso = Torso(
        half_width=generator.normal(136, 7),
        half_depth=generator.normal(89, 6),
        wall=generator.uniform(10, 15),
        skin_fat=float(np.clip(15 * np.exp(0.4 * fatness), 5, 34)),
        renal_fat=float(np.clip(7 * np.exp(0.4 * fatness), 2, 16)),
    )
    cavity = _paint_trunk(canvas, torso)
    _paint_bowel(canvas, torso, cavity, generator)
    _paint_liver(canvas, cavity, generator)
    _paint_spleen(canvas, cavity, generator)
    _paint_back(canvas, torso, generator)
    level = generator.normal(-10, 5)
    common = np.exp(0.04 * generator.standard_normal())
    for side in (RIGHT, LEFT):
        _paint_kidney(canvas, side, level - (12 if side == RIGHT else 0), common, torso, generator)
    _paint_spine(canvas, generator)
    _paint_vessels(canvas, generator)
    for organ in ("liver", "spleen"):
        _drop_splinters(canvas, LABELS[organ])
    return canvas.anatomy(axes)


def _deformed_points(axes, generator):
    """Return the anatomical coordinates of the grid: scaled, turned, shifted and smoothly bent, `(3, x, y, z)`."""
    grid = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    coarse = smooth_field(axes, 75.0, generator, fields=3) * np.float32(5.5)
    fine = smooth_field(axes, 30.0, generator, fields=3) * np.float32(1.5)
    turn = rotation(z_degrees=generator.normal(0, 3), y_degrees=generator.normal(0, 2))
    scale = np.exp(generator.normal(0, 0.03))
    shift = generator.normal(0, (5, 5, 4)).astype(np.float32)
    turned = np.einsum("ij,jxyz->ixyz", (turn / scale).astype(np.float32), grid - shift[:, None, None, None])
    return turned + coarse + fine


def _superellipse(points, half_width, half_depth):
    """Return |x/a|^2.4 + |y/b|^2.4, 1 on the outline of a trunk slightly squarer than an ellipse."""
    return np.abs(points[0] / half_width) ** 2.4 + np.abs(points[1] / half_depth) ** 2.4


def _paint_trunk(canvas, torso):
    """Paint skin fat, muscular wall and visceral fat; return a boolean array of the points inside the cavity."""
    points = canvas.points
    # Skin fat is thickest at the flanks and thin in front of the sternum and over the spine.
    thickness = torso.skin_fat * (0.75 + 0.5 * np.abs(points[0]) / torso.half_width)
    skin = _superellipse(points, torso.half_width + thickness, torso.half_depth + 0.8 * thickness) < 1
    canvas.paint(np.flatnonzero(skin), "adipose")
    canvas.paint(np.flatnonzero(_superellipse(points, torso.half_width, torso.half_depth) < 1), "muscle")
    inside = _superellipse(points, *torso.cavity) < 1
    canvas.paint(np.flatnonzero(inside), "adipose")
    # Ribs: dark rings with marrow, running obliquely through the wall of the upper half.
    angle = np.arctan2(points[1], np.abs(points[0]))
    middle = _superellipse(points, torso.half_width - torso.wall / 2, torso.half_depth - torso.wall / 2)
    spacing = (points[2] + 35 * angle) % 26 - 13
    rib = (np.abs(middle - 1) < 0.07) & (np.abs(spacing) < 5) & (points[2] > 15 + 25 * angle)
    canvas.paint(np.flatnonzero(rib), "cortical_bone")
    canvas.paint(np.flatnonzero(rib & (np.abs(middle - 1) < 0.04) & (np.abs(spacing) < 3)), "marrow")
    return inside


def _paint_hollow(canvas, cavity, index, distance, wall, content, part):
    """Paint, inside the cavity, a wall where `distance` (0 centre, 1 edge) exceeds `wall`, and content within it."""
    index, inside = index[cavity[index]], distance[cavity[index]] < wall
    canvas.paint(index[~inside], "bowel_wall", part)
    canvas.paint(index[inside], content, part)


def _paint_bowel(canvas, torso, cavity, generator):
    """Paint small bowel loops, colon, stomach and pancreas; the content differs from loop to loop."""
    width, depth = torso.cavity
    part = 0
    contents = ["bowel_fluid", "bowel_stool", "bowel_wall", "air"]
    for _ in range(generator.integers(22, 34)):
        part += 1
        centre = generator.uniform((-0.75 * width, -10, -80), (0.75 * width, 0.8 * depth, 30))
        reach = generator.normal(0, (26, 14, 14))
        content = generator.choice(contents, p=[0.27, 0.25, 0.4, 0.08])
        index, distance = canvas.tube(
            centre - reach, centre + reach, generator.uniform(8, 14), 8, generator.uniform(0, 6)
        )
        _paint_hollow(canvas, cavity, index, distance, 0.75, content, part)
    ascending = generator.normal((0.72 * width, 8, 0), (5, 8, 0))
    descending = generator.normal((-0.80 * width, -5, 0), (4, 8, 0))
    colon = [
        (ascending + (0, 0, -90), ascending + (0, 10, -20)),
        (ascending + (0, 15, -20), generator.normal((0, 0.7 * depth, -20), (15, 4, 12))),
        (generator.normal((10, 0.7 * depth, -10), (10, 4, 12)), descending + (8, 30, 25)),
        (descending + (0, 10, 25), descending + (0, 0, -90)),
    ]
    for start, end in colon:
        part += 1
        index, distance = canvas.tube(start, end, generator.uniform(14, 21), 5, generator.uniform(0, 6))
        content = generator.choice(["bowel_stool", "air", "bowel_fluid"], p=[0.7, 0.2, 0.1])
        _paint_hollow(canvas, cavity, index, distance, 0.85, content, part)
    _paint_stomach(canvas, torso, cavity, part + 1, generator)
    tail, head = generator.normal((-62, -2, 32), 5), generator.normal((30, 14, 0), 5)
    index = canvas.tube(head, tail, generator.uniform(8, 12), 5)[0]
    canvas.paint(index[cavity[index]], "pancreas", part + 2)


def _paint_stomach(canvas, torso, cavity, part, generator):
    """Paint the stomach: a wall, fluid or food, and gas above its level (the subject lies supine)."""
    width, depth = torso.cavity
    centre = generator.normal((-0.42 * width, 0.42 * depth, 50), (7, 5, 8))
    semi_axes = np.array([40, 28, 40]) * generator.uniform(0.7, 1.15, 3)
    index = canvas.ellipsoid(centre, semi_axes, rotation(z_degrees=generator.normal(-20, 10)))
    local = np.linalg.norm(canvas.local(index, centre, semi_axes), axis=0)
    content = generator.choice(["bowel_fluid", "bowel_stool"])
    _paint_hollow(canvas, cavity, index, local, 0.88, content, part)
    level = centre[1] + generator.uniform(0, 0.7) * semi_axes[1]
    gas = index[(local < 0.85) & (canvas.points[1, index] > level)]
    canvas.paint(gas, "air", over=("bowel_fluid", "bowel_stool"))


def _paint_liver(canvas, cavity, generator):
    """Paint both lobes, cut off at the wall of the cavity, with portal and hepatic vessels and the gallbladder."""
    label = LABELS["liver"]
    size = np.exp(0.06 * generator.standard_normal())
    right = generator.normal((69, 8, 36), (4, 4, 7))
    left = generator.normal((0, 44, 48), (8, 4, 7))
    lobes = [
        canvas.ellipsoid(right, size * generator.normal((67, 82, 86), (4, 4, 6)), rotation(y_degrees=-8)),
        canvas.ellipsoid(left, size * generator.normal((72, 34, 42), (9, 4, 5)), rotation(y_degrees=12)),
    ]
    for index in lobes:
        canvas.paint(index[cavity[index]], "liver", label=label)
    hilum = generator.normal((32, 12, 34), 4)
    ends = right + generator.uniform((-25, -45, -40), (40, 45, 45), (7, 3))
    for end in [*ends, left]:
        index = canvas.tube(hilum, end, generator.uniform(2.5, 5), 4, generator.uniform(0, 6))[0]
        canvas.paint(index, "blood", label=label, over=("liver",))
    bladder = generator.normal((48, 42, -8), (6, 6, 6))
    semi_axes = generator.uniform((9, 9, 18), (15, 14, 30))
    index = canvas.ellipsoid(bladder, semi_axes, rotation(x_degrees=25))
    canvas.paint(index[cavity[index]], "bile")


def _paint_spleen(canvas, cavity, generator):
    """Paint the spleen: an ellipsoid under the left flank, hollowed on its medial side."""
    centre = generator.normal((-92, -30, 33), (4, 6, 8))
    semi_axes = generator.normal((31, 46, 56), (2.5, 3.5, 5)) * np.exp(0.07 * generator.standard_normal())
    turn = rotation(z_degrees=generator.normal(-20, 8), x_degrees=generator.normal(10, 6))
    index = canvas.ellipsoid(centre, semi_axes, turn)
    local = canvas.local(index, centre, semi_axes, turn)
    hollow = (local[0] - 1.25) ** 2 + (local[1] - 0.1) ** 2 + 0.6 * local[2] ** 2 < 0.75
    canvas.paint(index[cavity[index] & ~hollow], "spleen", label=LABELS["spleen"])


def _paint_back(canvas, torso, generator):
    """Paint the muscles beside the spine: erector spinae, quadratus lumborum, and psoas, which widens downwards."""
    bulk = np.exp(0.1 * generator.standard_normal())
    height = canvas.points[2]
    for side in (RIGHT, LEFT):
        canvas.paint(canvas.ellipsoid((side * 34, 26 - torso.half_depth, 0), (32 * bulk, 24, 400)), "muscle")
        canvas.paint(canvas.ellipsoid((side * 68, 26 - torso.half_depth, -60), (20, 8 * bulk, 70)), "muscle")
        index = canvas.near((side * 38, -30, 0), (30, 30, 200))
        x, y = canvas.points[0, index] - side * 36, canvas.points[1, index] + 30
        radius = bulk * np.clip(13 - 0.13 * height[index], 0, 26)
        canvas.paint(index[(x / 0.85) ** 2 + y**2 < radius**2], "muscle")


def _paint_kidney(canvas, side, level, common, torso, generator):
    """Paint one kidney in its fat: cortex, pyramids of medulla, and a sinus of fat and urine open to the hilum.

    Args:
        canvas: `Canvas`.
        side: RIGHT or LEFT.
        level: Height of its centre, mm.
        common: Size factor shared by both kidneys of the subject.
        torso: `Torso`.
        generator: `numpy.random.Generator`.
    """
    centre = generator.normal((side * 66, -36, level), (4, 4, 5))
    size = common * np.exp(0.03 * generator.standard_normal())
    semi_axes = size * generator.normal((30, 27, 54), (1.2, 1.2, 2.5))
    # Upper poles lean towards the spine and backwards; the hilum faces inwards and forwards.
    turn = rotation(generator.normal(10, 6), generator.normal(side * -14, 5), generator.normal(side * -30, 12))
    fat = torso.renal_fat
    canvas.paint(canvas.ellipsoid(centre, semi_axes + 0.4 * fat, turn), "adipose")
    around = canvas.ellipsoid(centre, semi_axes + fat, turn)
    canvas.paint(around, "adipose", over=("bowel_wall", "bowel_fluid", "bowel_stool", "air", "pancreas"))
    index = canvas.ellipsoid(centre, semi_axes, turn)
    local = canvas.local(index, centre, semi_axes, turn)
    outward, forward, upward = side * local[0], local[1], local[2]
    radius = np.linalg.norm(local, axis=0)
    sinus = ((outward + 0.45) / 0.62) ** 2 + (forward / 0.42) ** 2 + (upward / 0.5) ** 2 < 1
    # Pyramids: the medullary shell is cut by columns of cortex, about eight around the sinus.
    phase = generator.uniform(0, 2 * np.pi)
    columns = np.cos(7 * np.arctan2(upward, outward + 0.5) + phase) + 0.7 * np.cos(
        4 * np.arctan2(forward, outward + 0.5) + phase
    )
    label = LABELS["right_kidney" if side == RIGHT else "left_kidney"]
    cortex_thickness = generator.uniform(0.22, 0.3)
    canvas.paint(index, "renal_cortex", label=label)
    canvas.paint(index[(radius < 1 - cortex_thickness) & (columns > -0.75)], "renal_medulla", label=label)
    canvas.paint(index[sinus], "adipose")
    width = generator.uniform(0.3, 0.75)  # from a collapsed to a mildly widened collecting system
    pelvis = ((outward + 0.5) / 0.5) ** 2 + (forward / 0.35) ** 2 + (upward / 0.4) ** 2 < width**2
    canvas.paint(index[pelvis & sinus], "urine")


def _paint_spine(canvas, generator):
    """Paint vertebral bodies with dark end plates between discs, arch, and spinal canal with cord."""
    period, offset = generator.normal(34, 1.5), generator.uniform(0, 34)
    body = canvas.ellipsoid((0, -26, 0), (generator.normal(23, 1.2), generator.normal(18, 1), 400))
    height = (canvas.points[2, body] + offset) % period
    canvas.paint(body, "marrow")
    canvas.paint(body[height < 11], "cortical_bone")
    canvas.paint(body[(height > 1) & (height < 10)], "disc")
    canvas.paint(canvas.ellipsoid((0, -52, 0), (15, 13, 400)), "cortical_bone")
    canvas.paint(canvas.ellipsoid((0, -68, 0), (4, 14, 400)), "marrow")
    canvas.paint(canvas.ellipsoid((0, -52, 0), (11, 9, 400)), "csf")
    canvas.paint(canvas.ellipsoid((0, -52.5, 0), (5.5, 4.5, 400)), "spinal_cord")


def _paint_vessels(canvas, generator):
    """Paint aorta, inferior vena cava and the renal veins and arteries."""
    aorta, cava = generator.normal((-10, 5, 0), (3, 2, 0)), generator.normal((22, 3, 0), (3, 2, 0))
    canvas.paint(canvas.ellipsoid(aorta, (*generator.uniform(9, 12) * np.ones(2), 400)), "blood")
    canvas.paint(canvas.ellipsoid(cava, (generator.uniform(9, 14), generator.uniform(7, 10), 400)), "blood")
    for side, origin in ((RIGHT, cava), (LEFT, aorta)):
        start = origin + (0, 0, generator.normal(-8, 5))
        index = canvas.tube(start, start + (side * 42, -28, -8), generator.uniform(3, 5))[0]
        canvas.paint(index, "blood", over=("adipose", "muscle"))


def _drop_splinters(canvas, label):
    """Turn pieces of an organ that later structures have cut off into fat: all but the largest."""
    pieces = ndimage.label(canvas.label.reshape(canvas.shape) == label)[0].ravel()
    sizes = np.bincount(pieces)
    splinters = np.flatnonzero((pieces > 0) & (pieces != 1 + np.argmax(sizes[1:])))
    canvas.paint(splinters, "adipose")
