"""Nine kinds of damage to images in [0, 1], in five severities each, as in ImageNet-C (arXiv:1903.12261).

Every image has its own noise, and the same each time.
"""

from collections.abc import Callable

import numpy as np

Corruption = Callable[[np.ndarray, float, np.random.RandomState], np.ndarray]
SMALL = 16  # images below this size are blurred less


def corrupted(images: np.ndarray, kind: str, severity: int) -> np.ndarray:
    """Images (n, height, width, channels) with a kind of damage, from severity 1 to 5."""
    function, strengths = KINDS[kind]
    random = np.random.RandomState(17 * severity)
    damaged = function(images.astype(np.float64), strengths[severity - 1], random)
    return np.clip(damaged, 0, 1).astype(images.dtype)


def gaussian(x: np.ndarray, sigma: float, random: np.random.RandomState) -> np.ndarray:
    """Noise of a standard deviation."""
    return x + random.normal(scale=sigma, size=x.shape)


def shot(x: np.ndarray, light: float, random: np.random.RandomState) -> np.ndarray:
    """As many particles of light as a white point has on average."""
    return random.poisson(x * light) / light


def impulse(x: np.ndarray, part: float, random: np.random.RandomState) -> np.ndarray:
    """A part of the points black or white."""
    drawn = random.uniform(size=x.shape)
    return np.where(drawn < part / 2, 0.0, np.where(drawn < part, 1.0, x))


def blur(x: np.ndarray, sigma: float, _: np.random.RandomState) -> np.ndarray:
    """A Gaussian filter of a width in points; of small images a narrower one."""
    from scipy.ndimage import gaussian_filter  # here, as the compilers' environments do without

    width = sigma * (0.6 if x.shape[1] < SMALL else 1)
    return gaussian_filter(x, (0, width, width, 0), mode="nearest")


def motion(x: np.ndarray, length: float, random: np.random.RandomState) -> np.ndarray:
    """The mean of points in a row, to one of four sides; of small images half as many."""
    points = round(length / 2 + 0.5) if x.shape[1] < SMALL else round(length)
    steps = np.array([(0, 1), (1, 0), (1, 1), (1, -1)])[random.randint(4, size=len(x))]
    moved = np.zeros_like(x)
    for i in range(points):
        by = i - points // 2
        rows, columns = (
            np.clip(np.arange(size) + by * step[:, None], 0, size - 1)
            for size, step in zip(x.shape[1:3], steps.T, strict=True)
        )
        moved += x[np.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved / points


def contrast(x: np.ndarray, part: float, _: np.random.RandomState) -> np.ndarray:
    """A part of the distance from the mean of the image."""
    mean = x.mean((1, 2, 3), keepdims=True)
    return part * (x - mean) + mean


def brightness(x: np.ndarray, more: float, _: np.random.RandomState) -> np.ndarray:
    """Light added everywhere."""
    return x + more


def pixelate(x: np.ndarray, part: float, _: np.random.RandomState) -> np.ndarray:
    """A part of the rows and columns, as large as before."""
    for axis in (1, 2):
        size = x.shape[axis]
        fewer = max(round(part * size), 1)
        # How much of each old point lies in each new one.
        edges = np.arange(fewer + 1) * size / fewer
        old = np.arange(size)
        share = np.clip(np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old), 0, None)
        small = np.moveaxis(np.tensordot(share * fewer / size, x, (1, axis)), 0, axis)
        x = np.take(small, (2 * old + 1) * fewer // (2 * size), axis)
    return x


def fog(x: np.ndarray, strength: float, random: np.random.RandomState) -> np.ndarray:
    """Clouds of light of all sizes, in the place of a part of the contrast."""
    from scipy.ndimage import zoom

    size, clouds, cells = x.shape[1:3], np.zeros(x.shape[:3]), 2
    while cells <= max(size):
        coarse = random.uniform(size=(len(x), cells, cells))
        clouds += zoom(coarse, (1, size[0] / cells, size[1] / cells), order=1) / cells
        cells *= 2
    low, high = clouds.min((1, 2), keepdims=True), clouds.max((1, 2), keepdims=True)
    return (x + strength * ((clouds - low) / (high - low))[..., None]) / (1 + strength)


# By name, and the strengths of the five severities.
KINDS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "gaussian": (gaussian, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot": (shot, (60, 25, 12, 5, 3)),
    "impulse": (impulse, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "blur": (blur, (0.5, 0.8, 1.1, 1.5, 2)),
    "motion": (motion, (3, 5, 7, 9, 11)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "pixelate": (pixelate, (0.8, 0.725, 0.65, 0.575, 0.5)),
    "fog": (fog, (0.2, 0.4, 0.6, 0.8, 1)),
}
