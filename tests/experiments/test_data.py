"""The data: the digits' split, the idx format, and batches that hold every example exactly once."""

import gzip
import hashlib
import re
import struct
import tracemalloc

import numpy as np
import pytest
from sklearn.datasets import load_digits

from experiments import compare, train
from experiments.cli.errors import UserError
from experiments.config import DataConfig
from experiments.data import SETS, batches, count, epoch_order, load_data
from experiments.data.idx import read_idx
from experiments.models import MODELS
from experiments.tasks import TASKS
from experiments.training import run


def test_the_split_of_the_digits_is_fixed_disjoint_and_whole():
    train_part, held_out, classes = load_data(DataConfig())
    assert (count(train_part), count(held_out), classes) == (1437, 360, 10)
    images, labels = load_digits(return_X_y=True)

    ours = [np.column_stack([t["image"].reshape(-1, 64) * 16, t["label"]]) for t in (train_part, held_out)]
    assert sorted(map(tuple, np.concatenate(ours))) == sorted(map(tuple, np.column_stack([images, labels])))
    # As it was when it was chosen: results would not be comparable if it changed.
    assert hashlib.sha256(held_out["label"].astype("<i4").tobytes()).hexdigest()[:16] == "90b64c9407bb9336"


def test_shuffled_labels_are_the_same_labels_of_other_images():
    plain, shuffled = load_data(DataConfig()), load_data(DataConfig(shuffle_labels=True))
    np.testing.assert_array_equal(plain.train["image"], shuffled.train["image"])
    np.testing.assert_array_equal(np.bincount(plain.train["label"]), np.bincount(shuffled.train["label"]))
    assert (plain.train["label"] == shuffled.train["label"]).mean() < 0.15
    np.testing.assert_array_equal(plain.held_out["label"], shuffled.held_out["label"])


def test_fewer_examples():
    data = load_data(DataConfig(train_examples=30, eval_examples=7))
    assert len(data.train["image"]) == len(data.train["label"]) == 30
    assert len(data.held_out["image"]) == len(data.held_out["label"]) == 7


@pytest.mark.parametrize(("n", "size"), [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_batches_hold_every_example_once_in_one_shape(n, size):
    numbers = np.arange(1, n + 1, dtype=np.int32)
    examples = {"image": numbers.astype(np.float32).reshape(n, 1, 1, 1), "label": numbers}
    order = epoch_order(0, 1, n)
    made = list(batches(examples, size, order))
    assert len(made) == -(-n // size)
    for batch in made:
        assert batch["image"].shape == (size, 1, 1, 1)
        assert batch["label"].shape == batch["mask"].shape == (size,)
        assert not batch["image"][~batch["mask"]].any()
    for key, first in (("image", 1), ("label", 1), ("index", 0)):
        kept = np.concatenate([batch[key][batch["mask"]].ravel() for batch in made])
        np.testing.assert_array_equal(kept, order + first)
    assert sorted(order) == list(range(n))


def test_every_epoch_and_every_seed_has_its_own_order():
    orders = {tuple(epoch_order(seed, epoch, 20)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    np.testing.assert_array_equal(epoch_order(2, 5, 20), epoch_order(2, 5, 20))


def idx_bytes(array, *, magic=None, shape=None):
    array = np.asarray(array, np.uint8)
    shape = array.shape if shape is None else shape
    magic = bytes((0, 0, 8, len(shape))) if magic is None else magic
    return magic + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


IMAGES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
LABELS = np.array([3, 0, 9], np.uint8)
GOOD = {
    "train-images-idx3-ubyte": idx_bytes(IMAGES),
    "train-labels-idx1-ubyte": idx_bytes(LABELS),
    "t10k-images-idx3-ubyte": idx_bytes(IMAGES[:2]),
    "t10k-labels-idx1-ubyte": idx_bytes(LABELS[:2]),
}


def write(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("compressed", [False, True])
def test_idx_files_are_read(tmp_path, compressed):
    files = {name + ".gz": gzip.compress(content) for name, content in GOOD.items()} if compressed else GOOD
    write(tmp_path, files)
    data = load_data(DataConfig(name="idx", directory=str(tmp_path)))
    np.testing.assert_allclose(data.train["image"], IMAGES[..., None] / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.train["label"], LABELS)
    np.testing.assert_allclose(data.held_out["image"], IMAGES[:2, ..., None] / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.held_out["label"], LABELS[:2])


def test_an_idx_file_may_be_compressed_without_saying_so(tmp_path):
    (tmp_path / "plain").write_bytes(gzip.compress(idx_bytes(LABELS)))
    np.testing.assert_array_equal(read_idx(tmp_path / "plain", 1), LABELS)


def test_a_size_that_a_header_promises_is_no_reason_to_take_memory(tmp_path):
    """Neither for what is promised and is not there, nor for what is there and was not promised."""
    file, header = tmp_path / "images.gz", bytes((0, 0, 8, 3))
    for shape, content, words in (
        ((2**15, 2**8, 2**8), b"", "must hold 1073741824 bytes at most, but its header promises"),
        ((2**14, 2**8, 2**8 - 1), b"x", "is cut off"),
        ((1, 4, 4), bytes(2**26), "has bytes left over"),
    ):
        file.write_bytes(gzip.compress(header + struct.pack(">3I", *shape) + content, 1))
        tracemalloc.start()
        with pytest.raises(UserError, match=words):
            read_idx(file, 3)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**23


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--config.train.batch_size=30000"], "`config.train.batch_size` must be at most 1437, the number of training"),
        (["--config.train.eval_batch_size=1000000"], "`config.train.eval_batch_size` must be at most 512"),
        (["--config.data.train_examples=30000"], "`config.data.train_examples` must be at most 1437, all there are"),
        (["--config.data.eval_examples=361"], "`config.data.eval_examples` must be at most 360"),
        (["--config.train.epochs=2000000000"], "must make fewer than 2^31 steps"),
    ],
)
@pytest.mark.parametrize("program", [train, compare])
def test_what_is_larger_than_the_data_is_refused_before_anything_is_written(tmp_path, program, argv, expected):
    with pytest.raises(UserError) as error:
        program.main(["--config=configs/digits_cnn.py", *argv, f"--workdir={tmp_path}/run"])
    assert expected in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "known"), [("config.data.name", SETS), ("config.model.name", MODELS), ("config.task", TASKS)]
)
@pytest.mark.parametrize("program", [train, compare])
def test_a_name_that_nothing_has_is_refused_with_those_that_there_are(tmp_path, program, option, known):
    names = ", ".join(f"`{name}`" for name in known)
    with pytest.raises(UserError, match=rf"`{option}` must be one of {names}, or `FILE.py:NAME`, .*, but it is 'x'\."):
        program.main(["--config=configs/digits_cnn.py", f"--{option}=x", f"--workdir={tmp_path}/run"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("program", [train, compare])
def test_a_network_that_memory_cannot_hold_is_refused_before_anything_is_written(monkeypatch, tmp_path, program):
    monkeypatch.setattr(run, "memory", lambda: 10**9)
    with pytest.raises(
        UserError, match=r"must fit the memory of a device, 1.0 GB, but to train \(4096, 4096, 8\) takes"
    ):
        program.main(
            [
                "--config=configs/digits_cnn.py",
                "--config.model.widths",
                "4096",
                "4096",
                "8",
                f"--workdir={tmp_path}/run",
            ]
        )
    assert not (tmp_path / "run").exists()


IMAGE_FILE = "train-images-idx3-ubyte"


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ({IMAGE_FILE: idx_bytes(IMAGES, magic=b"\0\0\x0d\3")}, "must begin with .* 00 00 08 03, but .* 00 00 0d 03"),
        ({IMAGE_FILE: idx_bytes(LABELS)}, "is not an idx file of unsigned bytes with 3 axes"),
        ({IMAGE_FILE: b""}, "begins with nothing"),
        ({IMAGE_FILE: idx_bytes(IMAGES)[:9]}, "ends inside its header, after 9 of 16 bytes"),
        ({IMAGE_FILE: idx_bytes(IMAGES)[:-1]}, r"promises \(3, 4, 5\), 76 bytes, but there are 75"),
        ({IMAGE_FILE: idx_bytes(IMAGES) + b"x"}, "has bytes left over"),
        ({IMAGE_FILE: gzip.compress(idx_bytes(IMAGES))[:-9]}, "cannot be read: Compressed file ended"),
        ({IMAGE_FILE: b"\x1f\x8b not so"}, "cannot be read"),
        ({IMAGE_FILE: idx_bytes(IMAGES[:2])}, "holds 2 images, but .* holds 3 labels"),
        ({IMAGE_FILE: idx_bytes(IMAGES[:0]), "train-labels-idx1-ubyte": idx_bytes(LABELS[:0])}, "holds no images"),
        ({"train-labels-idx1-ubyte": idx_bytes([3, 10, 0])}, "must be below 10, but one is 10"),
        ({"t10k-images-idx3-ubyte": idx_bytes(IMAGES[:2, :, :4])}, "are not of one size: 4 by 5 and 4 by 4"),
        ({"t10k-labels-idx1-ubyte": None}, "must hold `t10k-labels-idx1-ubyte` or `t10k-labels-idx1-ubyte.gz`"),
        ({IMAGE_FILE: idx_bytes(IMAGES[:, :3])}, "must be 4 by 4 at least"),
    ],
)
def test_a_broken_idx_file_is_an_error_before_training(tmp_path, broken, expected):
    write(tmp_path, {name: content for name, content in {**GOOD, **broken}.items() if content is not None})
    argv = ["--config=configs/mnist_cnn.py", f"--config.data.directory={tmp_path}", f"--workdir={tmp_path}/run"]
    with pytest.raises(UserError) as error:
        train.main(argv)
    assert re.search(expected, str(error.value))
    assert str(tmp_path) in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_folder_of_idx_files_must_be_named_and_be_there(tmp_path):
    with pytest.raises(UserError, match=r"`data.directory` must name the folder"):
        load_data(DataConfig(name="idx"))
    with pytest.raises(UserError, match="there is no folder"):
        load_data(DataConfig(name="idx", directory=str(tmp_path / "missing")))
