"""Paths as in a shell: home folders, environment variables, and names with accents."""

import os
import re
import unicodedata
from pathlib import Path

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")
FORMS = ("NFC", "NFD")


def expanded(path):
    """Replace a leading `~` or `~user` by the home folder, and `$NAME` or `${NAME}` by the environment variable.

    Args:
        path: Text or `Path`, as in a config. A folder that exists may have a `$` in its name.

    Returns:
        The same type.

    Raises:
        ValueError: The user does not exist, or a variable is not set and there is no folder of that name.
    """
    text = str(path)
    unset = [braced or bare for braced, bare in VARIABLE.findall(text) if (braced or bare) not in os.environ]
    if unset and not os.path.lexists(text):
        raise ValueError(f"the environment variable {unset[0]} is not set; set it, or remove the '$'")
    text = os.path.expanduser(os.path.expandvars(text))
    if text.startswith("~"):
        raise ValueError(f"there is no home folder '{text.split('/')[0]}'; write the path out")
    return text if isinstance(path, str) else Path(text)


def composed(name):
    """Compose accents with their letters (Unicode NFC), so that names from all systems compare equal."""
    return unicodedata.normalize("NFC", name)


def existing_form(path):
    """Return the form of a path that exists on disk, with accents composed or decomposed.

    Args:
        path: `Path`; returned unchanged if it exists, or if no form of it exists.
    """
    if path.exists() or str(path).isascii():
        return path
    forms = [Path(unicodedata.normalize(form, str(path))) for form in FORMS]
    return next((form for form in forms if form.exists()), path)
