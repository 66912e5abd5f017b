"""Simulated multi-contrast subjects with known tissue parameters: anatomy, signal equations, and scanner effects.

A subject is drawn on a grid twice as fine as its images in every direction. Signals are computed there, multiplied by
a receive field and averaged down, so that partial volume mixes complex signals as in a real voxel; Rician noise is then
added. Vessels hold static blood with a short apparent T2, there is no motion, and all contrasts share a grid.
"""

from dataclasses import dataclass

import numpy as np

from data.simulation import brain as brain_anatomy
from data.simulation import renal as renal_anatomy
from data.simulation.anatomy import PARTS, affine_of, grid_axes, smooth_field
from data.simulation.sequences import BRAIN_PROTOCOL, RENAL_PROTOCOL, rician, shorten_t1
from data.simulation.tissues import PARAMETERS, RELAXIVITY, TISSUE_INDEX, draw_tissues
from utils.checks import InputError
from utils.runs import child_seed

FINER = 2  # points per voxel along each axis

WITHIN = {"t1": 0.05, "t2": 0.05, "pd": 0.03}  # spread of a tissue within a subject (ours)
STRUCTURE_SPREAD = 0.2  # spread between bowel loops of the same content (ours)
NOISE_PERCENT = (1.5, 4.0)  # sigma in percent of the image's 99th percentile (ours)
DIFFUSION_NOISE = 2.0  # factor by which diffusion-weighted images are noisier (ours)
FULL_SCALE = 2000  # stored value of the 99.9th percentile; contrasts have arbitrary units, as on a scanner


@dataclass(frozen=True)
class AnatomyChoice:
    """One anatomy: how it is drawn, where it lies (mm), how it is scanned, and what its labels mean."""

    draw: object
    centre: tuple
    field_of_view: tuple
    shape: tuple
    protocol: dict
    labels: dict


def _choice(module, draw, protocol):
    return AnatomyChoice(draw, module.CENTRE, module.FIELD_OF_VIEW, module.SHAPE, protocol, module.LABELS)


ANATOMIES = {
    "renal": _choice(renal_anatomy, renal_anatomy.renal_anatomy, RENAL_PROTOCOL),
    "brain_tumour": _choice(brain_anatomy, brain_anatomy.brain_anatomy, BRAIN_PROTOCOL),
}


@dataclass(frozen=True)
class SimulatedSubject:
    """Images and truth of one subject on one grid.

    Attributes:
        contrasts: Name -> magnitude image, `(X, Y, Z)` or `(X, Y, Z, echoes)` int16, arbitrary units.
        label: Reference segmentation, `(X, Y, Z)` uint8: the label that fills most of the voxel.
        truth: "true_t1" and "true_t2" in ms, "true_pd" in percent, `(X, Y, Z)` float32; T1 (before contrast agent)
            and T2 are means over the protons of the voxel, water and lipid, and 0 where there are none.
            "true_tissue", `(X, Y, Z)` uint8: the tissue that fills most of the voxel, numbered by `TISSUE_INDEX`.
        affine: `(4, 4)` voxel to RAS+ world, mm.
    """

    contrasts: dict
    label: np.ndarray
    truth: dict
    affine: np.ndarray


def simulate_subject(anatomy, subject, seed, shape=None):
    """Draw and scan one subject.

    Args:
        anatomy: Key of `ANATOMIES`.
        subject: Identifier; together with the seed it determines everything, independently of other subjects.
        seed: Seed of the cohort.
        shape: Voxels along x (left to right), y (back to front), z (feet to head) in the anatomy's fixed field of
            view; None for the anatomy's own.

    Returns:
        `SimulatedSubject`.

    Raises:
        InputError: Unknown anatomy, or a shape below 8 voxels along x or y or 2 along z.
    """
    if anatomy not in ANATOMIES:
        raise InputError(f"anatomy '{anatomy}': unknown; known: {', '.join(ANATOMIES)}")
    choice = ANATOMIES[anatomy]
    shape = check_shape(shape or choice.shape)

    def generator(part):
        return np.random.default_rng(child_seed(seed, "simulation", anatomy, subject, part))

    fine = grid_axes(choice.centre, choice.field_of_view, [FINER * number for number in shape])
    drawn = choice.draw(fine, generator("anatomy"))
    parameters = _parameter_maps(drawn, draw_tissues(generator("tissues")), generator("within"))
    fields = _receive_fields(fine, choice.protocol, generator("receive field"))
    contrasts = {
        name: _scan(sequence, parameters, fields[name], generator(f"noise {name}"))
        for name, sequence in choice.protocol.items()
    }
    affine = affine_of(grid_axes(choice.centre, choice.field_of_view, shape))
    truth = _truth(parameters) | {"true_tissue": majority(drawn.tissue)}
    return SimulatedSubject(contrasts, majority(drawn.label), truth, affine)


def check_shape(shape):
    """Return a shape as a tuple of 3 integers; InputError if it is too coarse to show the anatomy."""
    shape = tuple(int(number) for number in shape)
    if len(shape) != 3 or min(shape[:2]) < 8 or shape[2] < 2:
        raise InputError(f"--shape {' '.join(map(str, shape))}: expected X Y Z of at least 8 8 2 voxels")
    return shape


def block_mean(values):
    """Average the finer grid `(2X, 2Y, 2Z)` down to voxels `(X, Y, Z)`."""
    x, y, z = (size // FINER for size in values.shape)
    return values.reshape(x, FINER, y, FINER, z, FINER).mean(axis=(1, 3, 5))


def majority(label):
    """Return the value that fills most of each voxel, `(2X, 2Y, 2Z)` to `(X, Y, Z)`; the lower one on a tie."""
    most, winner = 0.0, 0
    for value in np.unique(label):  # one at a time: shares of all tissues at once would not fit into memory
        share = block_mean((label == value).astype(np.float32))
        winner = np.where(share > most, value, winner)
        most = np.maximum(share, most)
    return winner.astype(np.uint8)


def _parameter_maps(drawn, tissues, generator):
    """Return T1, T2, T2*, PD, ADC, fat fraction and gadolinium at every fine point, and the parameters of lipid.

    The parameters of a tissue vary smoothly within the subject, and from structure to structure where the anatomy
    numbers its structures; T2 and T2* vary together.
    """
    structure = np.exp(STRUCTURE_SPREAD * generator.standard_normal((len(WITHIN), PARTS)))
    structure[:, 0] = 1.0
    smooth = smooth_field(drawn.axes, 25.0, generator, fields=len(WITHIN))
    factor = {
        name: np.exp(np.float32(spread) * smooth[row]) * structure[row].astype(np.float32)[drawn.part]
        for row, (name, spread) in enumerate(WITHIN.items())
    }
    factor["t2star"] = factor["t2"]
    maps = {
        name: getattr(tissues, name).astype(np.float32)[drawn.tissue] * factor.get(name, np.float32(1))
        for name in (*PARAMETERS, "gadolinium")
    }
    maps["pd"] = np.minimum(maps["pd"], 100.0)
    lipid = TISSUE_INDEX["lipid"]
    maps["lipid"] = {name: float(getattr(tissues, name)[lipid]) for name in ("t1", "t2", "t2star", "adc")}
    return maps


def _receive_fields(axes, protocol, generator):
    """Return the receive sensitivity for every contrast: one coil per subject, with small changes per contrast."""
    coil = 0.18 * smooth_field(axes, 130.0, generator)[0]
    each = 0.07 * smooth_field(axes, 110.0, generator, fields=len(protocol))
    return {name: np.exp(coil + field) for name, field in zip(protocol, each, strict=True)}


def _scan(sequence, maps, field, generator):
    """Return the magnitude image of one contrast, int16, with partial volume, receive field and Rician noise."""
    # Air has no signal; leaving it out saves half of the work.
    body = np.flatnonzero(maps["pd"])
    local = {name: maps[name].ravel()[body] for name in (*PARAMETERS, "gadolinium")}
    concentration = local.pop("gadolinium")
    if sequence.gadolinium:
        local["t1"] = shorten_t1(local["t1"], concentration, RELAXIVITY)
    echoes = []
    for te in sequence.echo_times:
        signal = np.zeros(field.shape, np.complex64)
        signal.ravel()[body] = sequence.signal(local, maps["lipid"], te) * field.ravel()[body]
        echoes.append(block_mean(signal))
    image = np.stack(echoes, axis=-1)
    brightest = np.percentile(np.abs(image[..., 0]), 99)
    percent = generator.uniform(*NOISE_PERCENT) * (DIFFUSION_NOISE if sequence.b_value else 1.0)
    noisy = rician(image, percent / 100 * brightest, generator)
    stored = np.round(np.minimum(noisy * (FULL_SCALE / np.percentile(noisy[..., 0], 99.9)), 32767)).astype(np.int16)
    return stored if sequence.is_series else stored[..., 0]


def _truth(maps):
    """Return the true T1, T2 (ms) and PD (percent) of every voxel, `(X, Y, Z)` float32."""
    fat, protons = maps["fat"] / 100, block_mean(maps["pd"])
    truth = {"true_pd": protons.astype(np.float32)}
    for name in ("t1", "t2"):
        mean = block_mean(maps["pd"] * ((1 - fat) * maps[name] + fat * maps["lipid"][name]))
        truth[f"true_{name}"] = np.divide(mean, protons, out=np.zeros_like(mean), where=protons > 0).astype(np.float32)
    return truth
