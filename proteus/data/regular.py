"""Only regular files are opened: whoever reads a pipe or a device may wait for ever."""

import os
import stat
from pathlib import Path
from typing import IO

from PIL import Image

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_BYTES_A_PIXEL = 12  # more than any format needs


def kind_of(path: str | Path) -> str:
    """What stands there if it is no regular file, `a pipe`; "" for a file.

    Links are followed.

    Raises:
        OSError: If there is nothing.
    """
    mode = stat.S_IFMT(os.stat(path).st_mode)
    return "" if mode == stat.S_IFREG else _KINDS.get(mode, "no file")


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a file to read its bytes.

    Raises:
        OSError: If it cannot be opened, or is no regular file.
    """
    # Before it is opened: that alone may do something to a device.
    if kind := kind_of(path):
        raise OSError(f"it is {kind}, no file")
    return open(path, "rb", opener=_open_without_waiting)


def _open_without_waiting(path: str, flags: int) -> int:
    """It may have become a pipe by now."""
    return os.open(path, flags | vars(os).get("O_NONBLOCK", 0))


def read_file(path: str | Path, offset: int = 0, size: int | None = None) -> bytes:
    """The bytes of an image: a whole file or `size` bytes of it, from `offset` on.

    Raises:
        OSError: If it cannot be read, is no regular file, ends before, or is larger than an image
            within Pillow's safety limit can be.
    """
    try:
        with open_regular(path) as file:
            length = os.fstat(file.fileno()).st_size
            end = length if size is None else offset + size
            if not 0 <= offset <= end <= length:
                raise OSError(f"bytes {offset} to {end} are asked for, and it has {length}")
            most = _BYTES_A_PIXEL * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else end
            if end - offset > most:
                raise OSError(f"{end - offset} bytes are more than any image needs")
            file.seek(offset)
            return file.read(end - offset)
    except ValueError as error:  # a name that cannot be one
        raise OSError(f"{error}") from error
