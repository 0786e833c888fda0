"""The idx format of MNIST: a magic number, the sizes of the axes, and unsigned bytes; perhaps compressed."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from experiments.errors import UserError

_UNSIGNED_BYTE = 0x08
_GZIP = b"\x1f\x8b"


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The array of unsigned bytes with `ndim` axes that is in the idx file `path`, compressed or not.

    Raises:
      UserError: no such file, or not one of that kind: the magic number, the sizes or the length are wrong.
    """
    content = _content(path)
    header = 4 + 4 * ndim
    magic = bytes((0, 0, _UNSIGNED_BYTE, ndim))
    if content[:4] != magic:
        raise UserError(
            f"`{path}` is not an idx file of unsigned bytes with {ndim} axes: it must begin with the bytes "
            f"{magic.hex(' ')}, but it begins with {content[:4].hex(' ') or 'nothing'}."
        )
    if len(content) < header:
        raise UserError(f"`{path}` is cut off: it ends inside its header, after {len(content)} of {header} bytes.")
    shape = struct.unpack(f">{ndim}I", content[4:header])
    size = header + math.prod(shape)
    if len(content) != size:
        what = "is cut off" if len(content) < size else "has bytes left over"
        raise UserError(f"`{path}` {what}: its header promises {shape}, {size} bytes, but there are {len(content)}.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == _GZIP else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"`{path}` cannot be read: {error}.") from error


def read_pair(directory: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, height, width) and labels (n,) of the `part` (`train` or `t10k`) in `directory`.

    Raises:
      UserError: a file that is missing or broken, or as many labels as there are not images.
    """
    image_file, label_file = (
        _find(directory, f"{part}-images-idx3-ubyte"),
        _find(directory, f"{part}-labels-idx1-ubyte"),
    )
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if len(images) != len(labels):
        raise UserError(f"`{image_file}` holds {len(images)} images, but `{label_file}` holds {len(labels)} labels.")
    if not images.size:
        raise UserError(f"`{image_file}` holds no images: its sizes are {images.shape}.")
    return images, labels


def _find(directory: Path, name: str) -> Path:
    for candidate in (name, name + ".gz"):
        if (directory / candidate).is_file():
            return directory / candidate
    if not directory.is_dir():
        raise UserError(f"`data.directory` must be a folder that holds `{name}`; there is no folder `{directory}`.")
    raise UserError(f"`data.directory` must hold `{name}` or `{name}.gz`, but `{directory}` has neither.")
