"""Mistakes a user can mend, and the shape checks that find them.

Axis letters used in docstrings everywhere: B batch (slices), H W pixels, D depth, C contrasts, P patches, A anchors,
F features, K classes, S slices of one subject, X Y Z voxels of a volume on disk.
"""


class InputError(ValueError):
    """Something the user must mend: a file, a config value, a command line.

    Scripts print each line of it on stderr without a traceback and exit with code 2. Every other exception is a
    fault of this suite and keeps its traceback.

    Args:
        lines: One line or several; each names where, what was found, what was expected and what to do.
    """

    def __init__(self, lines):
        self.lines = [lines] if isinstance(lines, str) else list(lines)
        super().__init__("\n".join(self.lines))


def accept(problems, keep_going, failures):
    """Add problems to the failures under --keep-going, and raise them as InputError otherwise."""
    if problems and not keep_going:
        raise InputError(problems)
    failures += problems


def counted(number, one, several=None):
    """Say how many there are: `1 grid`, `2 grids`; `several` where the plural is not `one` with an s."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def check_axes(name, shape, axes, **known):
    """Raise InputError unless a shape has these axes, e.g. `check_axes("image", x.shape, "B H W C", C=2)`.

    Args:
        name: What the array is called in the message.
        shape: Its shape.
        axes: Axis letters, separated by spaces.
        **known: Sizes that single axes must have.
    """
    letters = axes.split()
    if len(shape) != len(letters):
        raise InputError(f"{name}: shape {tuple(shape)} has {len(shape)} axes, expected {len(letters)} ({axes})")
    for letter, size in zip(letters, shape, strict=True):
        if size is not None and known.get(letter, size) != size:
            raise InputError(f"{name}: axis {letter} of shape {tuple(shape)} is {size}, expected {known[letter]}")


def whole_epochs(share, epochs):
    """How many epochs a share of them is: the nearest whole number, at least one of a share above 0."""
    return max(1, round(share * epochs)) if share else 0
