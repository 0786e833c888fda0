"""Images that stay bytes until a batch needs them: in memory, or on the disk however large the file is."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np


class Pixels:
    """Bytes (n, height, width) as images (n, height, width, 1) of numbers in [0, 1], where rows are asked for.

    Of a file nothing stays in memory but the rows of a batch: it is mapped for each, and let go.

    >>> images = Pixels(np.full((3, 2, 2), 255, np.uint8))
    >>> images.shape, images[np.array([2, 0])].max()
    ((3, 2, 2, 1), np.float32(1.0))
    """

    dtype = np.dtype(np.float32)

    def __init__(self, source: np.ndarray, n: int | None = None):
        """All images of an array or of a mapped file, or the first `n`."""
        self._open: Callable[[], np.ndarray] = lambda: source
        if isinstance(source, np.memmap):
            file, offset = source.filename, source.offset
            self._open = partial(np.memmap, file, np.uint8, "r", offset=offset, shape=source.shape)
        self.shape = (len(source) if n is None else min(n, len(source)), *source.shape[1:], 1)
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Any:
        """Images as an array; of a slice from the beginning, what is like this."""
        if isinstance(rows, slice) and rows.start is None and rows.step is None:
            return Pixels(self._open(), rows.indices(len(self))[1])
        return self._open()[: len(self)][rows][..., None].astype(np.float32) / 255

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[np.arange(len(self))].astype(dtype or np.float32)
