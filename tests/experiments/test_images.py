"""Images as they are read and damaged: Fashion-MNIST's folder, data larger than the memory, nine corruptions."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import zoom

from experiments.cli.errors import UserError
from experiments.config import DataConfig
from experiments.data import batches, count, epoch_order, idx, load_data
from experiments.data.corruptions import KINDS, corrupted
from experiments.data.prefetch import prefetched
from experiments.training.checkpoints import digest
from tests.experiments.test_data import GOOD, IMAGES, write

GREY = np.full((200, 28, 28, 1), 0.5)
DIGITS = load_data(DataConfig()).held_out["image"][:100]
LARGE = zoom(DIGITS[:20], (1, 3.5, 3.5, 1), order=1).clip(0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_grows_with_its_severity_and_is_the_same_each_time(kind):
    damage = []
    for severity in range(1, 6):
        made = corrupted(LARGE, kind, severity)
        assert made.dtype == LARGE.dtype
        assert made.shape == LARGE.shape
        assert 0 <= made.min() <= made.max() <= 1
        damage.append(float(np.abs(made - LARGE).mean()))
        np.testing.assert_array_equal(made, corrupted(LARGE, kind, severity))
    assert damage == sorted(damage)
    assert damage[0] > 0.004


def test_corruptions_are_what_their_numbers_say():
    """Standard deviations of 156,800 points are right to 0.5 %."""
    assert corrupted(GREY, "gaussian", 2).std() == pytest.approx(0.12, rel=0.01)
    assert corrupted(GREY, "shot", 2).std() == pytest.approx((0.5 / 25) ** 0.5, rel=0.01)
    made = corrupted(GREY, "impulse", 4)
    assert (made == 0).mean() == pytest.approx(0.17 / 2, rel=0.05)
    assert (made == 1).mean() == pytest.approx(0.17 / 2, rel=0.05)
    mean = DIGITS.mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(corrupted(DIGITS, "contrast", 4), mean + 0.3 * (DIGITS - mean), atol=1e-6)
    np.testing.assert_allclose(corrupted(DIGITS, "brightness", 3), np.minimum(DIGITS + 0.3, 1), atol=1e-6)
    point = np.zeros((40, 21, 21, 1))
    point[:, 10, 10] = 1
    distance = (np.arange(21) - 10) ** 2
    bell = np.exp(-(distance[:, None] + distance) / (2 * 1.5**2))
    np.testing.assert_allclose(corrupted(point, "blur", 4)[0, ..., 0], bell / bell.sum(), atol=1e-4)
    moved = corrupted(point, "motion", 2)
    np.testing.assert_allclose(moved.sum((1, 2, 3)), 1)
    assert ((moved > 0).sum((1, 2, 3)) == 5).all()
    assert len(np.unique(moved, axis=0)) == 4  # directions
    blocks = DIGITS.reshape(-1, 4, 2, 4, 2, 1).mean((2, 4))
    np.testing.assert_allclose(corrupted(DIGITS, "pixelate", 5), blocks.repeat(2, 1).repeat(2, 2), atol=1e-6)
    clouds = corrupted(np.zeros((3, 28, 28, 1)), "fog", 3)
    np.testing.assert_allclose(clouds.max((1, 2, 3)), 0.6 / 1.6, atol=1e-6)
    assert len(np.unique(clouds, axis=0)) == 3


def test_a_corruption_is_of_the_held_out_images_alone():
    plain, foggy = load_data(DataConfig()), load_data(DataConfig(corruption="fog", severity=4, eval_examples=50))
    np.testing.assert_array_equal(plain.train["image"], foggy.train["image"])
    np.testing.assert_array_equal(foggy.held_out["image"], corrupted(plain.held_out["image"], "fog", 4)[:50])
    with pytest.raises(UserError, match=r"`config.data.corruption` must be one of `gaussian`, .*, but it is 'frog'"):
        load_data(DataConfig(corruption="frog"))
    with pytest.raises(UserError, match=r"damages images, but `config.data.name=copy` has none"):
        load_data(DataConfig(name="copy", corruption="fog"))


def test_fashion_mnist_is_read_from_its_package_or_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "FASHION", str(tmp_path / "fashion"))
    with pytest.raises(UserError, match=r"Debian's package `dataset-fashion-mnist` .* there is no such folder"):
        load_data(DataConfig(name="fashion_mnist"))
    (tmp_path / "fashion").mkdir()
    write(tmp_path / "fashion", GOOD)
    data = load_data(DataConfig(name="fashion_mnist"))
    np.testing.assert_allclose(np.asarray(data.train["image"]), IMAGES[..., None] / 255, rtol=1e-6)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says what is resident")
def test_memory_stays_flat_over_two_epochs_of_a_file_that_is_larger(tmp_path):
    """Of 78 MB of images, which would be 314 MB as numbers, a few batches are in memory at any time."""
    n = 100_000
    write(tmp_path, GOOD)
    for name, header, size in (("images-idx3", (n, 28, 28), n * 784), ("labels-idx1", (n,), n)):
        with (tmp_path / f"train-{name}-ubyte").open("wb") as file:
            file.write(bytes((0, 0, 8, len(header))) + b"".join(i.to_bytes(4, "big") for i in header))
            file.truncate(file.tell() + size)
    write(tmp_path, {f"t10k-{n}": GOOD[f"t10k-{n}"] for n in ("labels-idx1-ubyte",)})
    with (tmp_path / "t10k-images-idx3-ubyte").open("wb") as file:
        file.write(bytes((0, 0, 8, 3)) + b"".join(i.to_bytes(4, "big") for i in (2, 28, 28)) + bytes(2 * 784))
    data = load_data(DataConfig(name="idx", directory=str(tmp_path)))
    assert count(data.train) == n
    before, most = resident(), 0
    digest(data.train["image"])
    for epoch in range(2):
        for batch in prefetched(batches(data.train, 1000, epoch_order(0, epoch, n))):
            assert batch["image"].shape == (1000, 28, 28, 1)
            most = max(most, resident() - before)
    assert most < 75e6, "45 MB were measured; a file that stays mapped adds 78 MB"


def test_prefetched_batches_come_in_order_and_errors_where_they_happen():
    def numbers():
        yield from range(5)
        raise OSError("disk gone")

    found = []
    with pytest.raises(OSError, match="disk gone"):
        found.extend(prefetched(numbers()))
    assert found == [*range(5)]
    ahead = prefetched(iter(range(100)))
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    ahead.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]
