"""Numbers, names and colours of the classes of label maps: the same in figures, report page and viewers."""

from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field

OKABE_ITO = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
# Black, the first of the palette, would be invisible on a dark image.
BRIGHT = OKABE_ITO[1:][::-1]


def _mixed(colour, other, share):
    """Mix two colours; `share` is that of the other one."""
    parts = zip(rgb_of(colour), rgb_of(other), strict=True)
    return "#" + "".join(f"{round((1 - share) * one + share * two):02X}" for one, two in parts)


def rgb_of(colour: str) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, of `#RRGGBB`."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


# Darker and lighter ones of the same hues differ in lightness, which every kind of colour vision tells apart.
PALETTE = (
    *BRIGHT,
    *(_mixed(colour, "#000000", 0.45) for colour in BRIGHT),
    *(_mixed(colour, "#FFFFFF", 0.55) for colour in BRIGHT),
)


def _quoted(value):
    if value is None:
        raise ValueError("no colour; quote it, such as '#E69F00', because # starts a comment in YAML")
    return value


_Hexadecimal = Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$", description="red, green and blue: '#RRGGBB'")]
Colour = Annotated[
    _Hexadecimal, BeforeValidator(_quoted, json_schema_input_type=_Hexadecimal), AfterValidator(str.upper)
]


class Label(NamedTuple):
    """A class: its number in label maps, its name, and its colour as `#RRGGBB`."""

    number: int
    name: str
    colour: str

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, 0 to 255."""
        return rgb_of(self.colour)


def legend_of(numbers: Mapping[str, int], chosen: Mapping[str, str] | None = None) -> list[Label]:
    """Give every class a colour.

    Args:
        numbers: Class name -> number in label maps, from 1; without background.
        chosen: Class name -> colour, where a config chooses one. The others get colours of a colour-blind safe palette
            (Okabe and Ito 2008, then darker and lighter ones) by their numbers. A class whose colour was chosen for
            another one gets the next free colour.

    Returns:
        One `Label` per class, in ascending order of the numbers. Colours repeat only beyond 21 classes.
    """
    chosen = chosen or {}
    default = {name: PALETTE[(number - 1) % len(PALETTE)] for name, number in numbers.items()}
    colours = default | {name: chosen[name] for name in numbers if name in chosen}
    for name in numbers:
        if name not in chosen and colours[name] in chosen.values():
            used = set(colours.values())
            colours[name] = next((colour for colour in PALETTE if colour not in used), colours[name])
    return [Label(number, name, colours[name]) for name, number in sorted(numbers.items(), key=lambda item: item[1])]


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Number class names from 1 in their order, as the label maps of this suite do."""
    return {name: number for number, name in enumerate(names, start=1)}
