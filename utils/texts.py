"""Text files from other programs: UTF-8, with or without the byte-order mark that Windows writes."""

from pathlib import Path


class NotUtf8(UnicodeError):
    """States which byte of a text file is not UTF-8, and what to do."""


def read_text(path):
    """Read a text file.

    Args:
        path: Text file in UTF-8, with or without a byte-order mark.

    Returns:
        Its text, with line ends as in the file.

    Raises:
        NotUtf8: The file has another encoding.
        OSError: The file cannot be read.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at position {error.start + 1}"
        raise NotUtf8(f"{found} is not UTF-8; save it as UTF-8") from None
