"""Text files of other programs: UTF-8, with or without the byte-order mark that Windows writes."""

from pathlib import Path


class NotUtf8(UnicodeError):
    """States which byte of a text file is not UTF-8, and what to do."""


def read_text(path):
    """Read a text file.

    Args:
        path: UTF-8, with a byte-order mark or without.

    Returns:
        Its text, line ends as they are in the file.

    Raises:
        NotUtf8: It is in another encoding.
        OSError: It cannot be read.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at position {error.start + 1}"
        raise NotUtf8(f"{found} is not UTF-8; save it as UTF-8") from None
