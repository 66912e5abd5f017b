import os
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def as_user():
    """A folder that everybody may read, to be an ordinary user in for a while: root may read and write everything."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        os.seteuid(os.getuid())
