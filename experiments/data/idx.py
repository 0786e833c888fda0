"""The idx format of MNIST: a magic number, the sizes of the axes, and unsigned bytes; perhaps compressed."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np

from experiments.cli.errors import UserError
from experiments.config import DataConfig
from experiments.data.examples import CLASSES, Data, Examples

_UNSIGNED_BYTE = 0x08
_GZIP = b"\x1f\x8b"
_LARGEST = 2**30  # bytes; as float32 they are four times as many


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The array of unsigned bytes with `ndim` axes that is in the idx file `path`, compressed or not.

    The header comes first, and no more is read than it promises: a compressed file may hold a thousand times its size.

    Raises:
      UserError: no such file, or not one of that kind: the magic number, the sizes or the length are wrong.
    """
    try:
        with _open(path) as file:
            shape = _shape(path, file, ndim)
            content = _at_most(file, math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"`{path}` cannot be read: {error}.") from error
    header, promised = 4 + 4 * ndim, math.prod(shape)
    if len(content) != promised:
        what, more = ("is cut off", "") if len(content) < promised else ("has bytes left over", "more than ")
        found = header + min(len(content), promised)
        raise UserError(
            f"`{path}` {what}: its header promises {shape}, {header + promised} bytes, but there are {more}{found}."
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP
    return cast(IO[bytes], gzip.open(path)) if compressed else path.open("rb")


def _shape(path: Path, file: IO[bytes], ndim: int) -> tuple[int, ...]:
    size, magic = 4 + 4 * ndim, bytes((0, 0, _UNSIGNED_BYTE, ndim))
    header = _at_most(file, size)
    if header[:4] != magic:
        raise UserError(
            f"`{path}` is not an idx file of unsigned bytes with {ndim} axes: it must begin with the bytes "
            f"{magic.hex(' ')}, but it begins with {header[:4].hex(' ') or 'nothing'}."
        )
    if len(header) < size:
        raise UserError(f"`{path}` is cut off: it ends inside its header, after {len(header)} of {size} bytes.")
    shape = struct.unpack(f">{ndim}I", header[4:])
    if math.prod(shape) > _LARGEST:
        raise UserError(
            f"`{path}` must hold {_LARGEST} bytes at most, but its header promises {shape}, {math.prod(shape)} bytes."
        )
    return shape


def _at_most(file: IO[bytes], size: int) -> bytes:
    """The next `size` bytes, fewer where the file ends; in pieces, because memory is for what is there."""
    content = bytearray()
    while len(content) < size and (piece := file.read(min(size - len(content), 2**20))):
        content += piece
    return bytes(content)


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


def load(config: DataConfig) -> Data:
    """The data in the folder of a config."""
    directory = config.directory
    if not directory:
        raise UserError("`data.directory` must name the folder of the four idx files; --config.data.directory=...")
    parts = [_examples(*read_pair(Path(directory), part), f"{directory}/{part}") for part in ("train", "t10k")]
    train, held_out = parts
    if train["image"].shape[1:] != held_out["image"].shape[1:]:
        sizes = " and ".join(" by ".join(map(str, p["image"].shape[1:3])) for p in parts)
        raise UserError(f"The images of `train` and `t10k` in `{directory}` are not of one size: {sizes}.")
    return Data(train, held_out)


def _examples(images: np.ndarray, labels: np.ndarray, source: str) -> Examples:
    if labels.max() >= CLASSES:
        raise UserError(f"The labels of `{source}` must be below {CLASSES}, but one is {labels.max()}.")
    if min(images.shape[1:]) < 4:
        raise UserError(f"The images of `{source}` must be 4 by 4 at least, for two poolings, but they are smaller.")
    return {"image": images[..., None].astype(np.float32) / 255, "label": labels.astype(np.int32)}
