"""Errors that users can fix, and checks of shapes.

Axis letters used in all docstrings: B batch (slices), H W pixels, D depth, C contrasts, P patches, A anchors,
F features, K classes, S slices of one subject, X Y Z voxels of a volume on disk.
"""


class InputError(ValueError):
    """A mistake that the user must fix: in a file, a config value or a command line.

    Scripts print each line on stderr without a traceback and exit with code 2. Every other exception is a bug in this
    suite and keeps its traceback.

    Args:
        lines: One line or several; each says where, what was found, what was expected and what to do.
    """

    def __init__(self, lines):
        self.lines = [lines] if isinstance(lines, str) else list(lines)
        super().__init__("\n".join(self.lines))


def accept(problems, keep_going, failures):
    """Append problems to `failures` under --keep-going; otherwise raise them as InputError."""
    if problems and not keep_going:
        raise InputError(problems)
    failures += problems


def counted(number, one, several=None):
    """Return a number with its noun: `1 grid`, `2 grids`; `several` is an irregular plural."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def check_axes(name, shape, axes, **known):
    """Raise InputError if a shape does not have these axes, e.g. `check_axes("image", x.shape, "B H W C", C=2)`.

    Args:
        name: Name of the array, for the message.
        shape: Its shape.
        axes: Axis letters, separated by spaces.
        **known: Required sizes of individual axes.
    """
    letters = axes.split()
    if len(shape) != len(letters):
        raise InputError(f"{name}: shape {tuple(shape)} has {len(shape)} axes, expected {len(letters)} ({axes})")
    for letter, size in zip(letters, shape, strict=True):
        if size is not None and known.get(letter, size) != size:
            raise InputError(f"{name}: axis {letter} of shape {tuple(shape)} is {size}, expected {known[letter]}")


def whole_epochs(share, epochs):
    """Convert a share of the epochs to the nearest whole number, at least one for a share above 0."""
    return max(1, round(share * epochs)) if share else 0
