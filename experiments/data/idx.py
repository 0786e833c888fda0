"""The idx format of MNIST: a magic number, the sizes of the axes, and unsigned bytes; perhaps compressed.

A file that is not compressed stays on the disk, where the data may be larger than the memory.
"""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np

from experiments.cli.errors import UserError
from experiments.config import DataConfig
from experiments.data.examples import CLASSES, Data, Examples
from experiments.data.pixels import Pixels

_UNSIGNED_BYTE = 0x08
FASHION = "/usr/share/datasets/fashion-mnist"
_GZIP = b"\x1f\x8b"
_LARGEST = 2**30  # bytes, of a compressed file: they are in memory


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The array of unsigned bytes with `ndim` axes that is in the idx file `path`; mapped, if it is not compressed.

    The header comes first, and no more is read than it promises: a compressed file may hold a thousand times its size.

    Raises:
      UserError: no such file, or not one of that kind: the magic number, the sizes or the length are wrong.
    """
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == _GZIP
        return _read(path, ndim) if compressed else _mapped(path, ndim)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"`{path}` cannot be read: {error}.") from error


def _mapped(path: Path, ndim: int) -> np.ndarray:
    header = 4 + 4 * ndim
    with path.open("rb") as file:
        shape = _shape(path, file, ndim)
        _check_length(path, shape, file.seek(0, os.SEEK_END) - header)
    if not math.prod(shape):  # which cannot be mapped
        return np.zeros(shape, np.uint8)
    return np.memmap(path, np.uint8, "r", header, shape)


def _read(path: Path, ndim: int) -> np.ndarray:
    with cast(IO[bytes], gzip.open(path)) as file:
        shape = _shape(path, file, ndim)
        if math.prod(shape) > _LARGEST:
            raise UserError(
                f"`{path}` must hold {_LARGEST} bytes at most, but its header promises {shape}, {math.prod(shape)} "
                "bytes; uncompressed it may hold more."
            )
        content = _at_most(file, math.prod(shape) + 1)
    _check_length(path, shape, len(content), "more than ")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _check_length(path: Path, shape: tuple[int, ...], found: int, more: str = "") -> None:
    header, promised = 4 + 4 * len(shape), math.prod(shape)
    if found != promised:
        what, more = ("is cut off", "") if found < promised else ("has bytes left over", more)
        there = header + (min(found, promised) if more else found)
        raise UserError(
            f"`{path}` {what}: its header promises {shape}, {header + promised} bytes, but there are {more}{there}."
        )


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
    return struct.unpack(f">{ndim}I", header[4:])


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
    if not config.directory:
        raise UserError("`data.directory` must name the folder of the four idx files; --config.data.directory=...")
    return load_folder(config.directory)


def load_fashion(config: DataConfig) -> Data:
    """Fashion-MNIST (arXiv:1708.07747), as Debian's package installs it, or from another folder."""
    if not config.directory and not Path(FASHION).is_dir():
        raise UserError(
            f"`config.data.name=fashion_mnist` reads `{FASHION}`, where Debian's package `dataset-fashion-mnist` puts "
            "it, but there is no such folder. Install the package, name a folder with the four files by "
            "`--config.data.directory=...`, or take `--config.data.name=digits`, which needs no file."
        )
    return load_folder(config.directory or FASHION)


def load_folder(directory: str) -> Data:
    """The data of the four files in a folder."""
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
    return {"image": cast(np.ndarray, Pixels(images)), "label": labels.astype(np.int32)}
