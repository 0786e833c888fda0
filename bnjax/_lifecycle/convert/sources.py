"""Weights as numpy arrays by name: from a mapping, a file of safetensors or of numpy. Never from a pickle."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")
KERAS = (".h5", ".keras", ".hdf5")
TAKEN = (
    "a mapping of names to arrays, a file that ends in `.safetensors`, `.safetensors.index.json` or `.npz`, or a module"
)


def read(source: Any) -> dict[str, np.ndarray]:
    """The arrays of a source that is no module, by name and in its order.

    Raises:
      ValueError: something else; a file that is missing, broken or a pickle.
    """
    if isinstance(source, Mapping):
        return {str(name): array(value, str(name)) for name, value in source.items()}
    if not isinstance(source, str | Path):
        raise ValueError(f"`source` must be {TAKEN}, but it is a {type(source).__name__}.")
    file = Path(source)
    if file.name.endswith(PICKLES):
        raise ValueError(
            f"`source` is {str(file)!r}, which is a pickle, and a pickle can run any code when it is read. Give what "
            "`torch.load(file, weights_only=True)` returns, or write it as safetensors first."
        )
    if file.name.endswith(KERAS):
        raise ValueError(
            f"`source` is {str(file)!r}, a file of Keras, which keeps no names of layers that could be matched. Load "
            "the model in Keras, and give the model."
        )
    if not file.name.endswith((".safetensors", ".json", ".npz")):
        raise ValueError(f"`source` must be {TAKEN}, but it is {str(file)!r}.")
    if not file.is_file():
        raise ValueError(f"`source` is {str(file)!r}, and there is no such file.")
    return _numpy(file) if file.suffix == ".npz" else _index(file) if file.suffix == ".json" else _safetensors(file)


def array(value: Any, name: str) -> np.ndarray:
    """An array of numpy, of what may be one of PyTorch or JAX.

    Raises:
      ValueError: no array of numbers.
    """
    if isinstance(value, Mapping):
        raise ValueError(f"`source` has a mapping at {name!r}, and not an array; give `source[{name!r}]`.")
    if hasattr(value, "detach"):  # a tensor of PyTorch, which numpy knows but for bfloat16
        return _of_tensor(value, name)
    if hasattr(value, "numpy") and hasattr(value, "value"):  # a variable of Keras, whose own way numpy warns of
        return array(value.value, name)
    found = np.asarray(value)
    if found.dtype == object or found.dtype.kind in "USM":
        raise ValueError(f"`source` must have arrays of numbers, but at {name!r} it has a {type(value).__name__}.")
    return found


def _of_tensor(value: Any, name: str) -> np.ndarray:
    try:
        value = value.detach().cpu()
        return value.float().numpy().astype(jnp.bfloat16) if str(value.dtype) == "torch.bfloat16" else value.numpy()
    except (TypeError, RuntimeError) as error:  # on the meta device, sparse, quantized, float8
        raise ValueError(
            f"`source` has at {name!r} a tensor that numpy cannot have ({str(error).splitlines()[0]}). Give one that "
            "is loaded, dense, and of float32, float16 or bfloat16."
        ) from error


def _numpy(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # of zip files and of numpy, of several kinds
        raise ValueError(
            f"`source` is {str(file)!r}, which cannot be read as arrays of numpy ({error}). Write it by `np.savez` "
            "from arrays of numbers; objects would need a pickle, which is not read."
        ) from error


def _safetensors(file: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ValueError(
            f"`source` is {str(file)!r}, and to read it needs safetensors: `pip install 'bnjax[convert]'`."
        ) from error
    try:
        with safe_open(file, framework="numpy") as tensors:
            return {name: tensors.get_tensor(name) for name in sorted(tensors.keys(), key=counting)}
    except Exception as error:  # of safetensors, and of numpy for a dtype that it has not
        raise ValueError(
            f"`source` is {str(file)!r}, which safetensors cannot read as numpy arrays ({error}). It may be cut off, "
            "or hold float8; write float8 as bfloat16 or float32 first."
        ) from error


def _index(file: Path) -> dict[str, np.ndarray]:
    """The tensors of all shards that an index names."""
    try:
        places: dict[str, str] = dict(json.loads(file.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"`source` is {str(file)!r}, which is no index of safetensors: it must be JSON with a `weight_map`."
        ) from error
    for name, place in places.items():
        if not isinstance(place, str) or place.endswith(".json"):
            raise ValueError(
                f"`source` is {str(file)!r}, whose `weight_map` has {place!r} for {name!r}; it must have the name of a "
                "file of safetensors beside it."
            )
    shards = {name: read(file.parent / name) for name in dict.fromkeys(places.values())}
    missing = [name for name, shard in places.items() if name not in shards[shard]]
    if missing:
        raise ValueError(f"`source` is {str(file)!r}, and {missing[0]!r} is not in {places[missing[0]]!r}, as it says.")
    return {name: shards[places[name]][name] for name in sorted(places, key=counting)}


def counting(name: str) -> list[tuple[str, int]]:
    """Sorts "blocks.2" before "blocks.10": safetensors writes arrays by name, and not in the order of definition."""
    return [(text, int(number or -1)) for text, number in re.findall(r"(\D*)(\d*)", name)]
