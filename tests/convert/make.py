"""Writes what PyTorch and Keras compute in every case: `python -m tests.convert.make` needs both.

Of each case its arrays by name, and its output with channels last. So the layouts are tested where neither is.
"""

from pathlib import Path

import numpy as np

from tests.convert import sources
from tests.convert.cases import CASES

FILE = Path(__file__).with_name("golden.npz")
KERAS = ("depthwise", "separable", "transposed", "transposed, `transpose_kernel`")  # in which it is not as Flax


def read(dialect, name):
    """The arrays of a case by name, and its output."""
    with np.load(FILE) as file:
        begins = f"{dialect}|{name}|"
        arrays = {key.removeprefix(begins): file[key] for key in file.files if key.startswith(begins)}
    return arrays, arrays.pop("output")


def main():
    found = {}
    for name, case in CASES.items():
        module = sources.torch_module(case.torch)
        arrays = sources.torch_arrays(module) | {"output": sources.torch_output(module, case.x)}
        found |= {f"torch|{name}|{key}": value for key, value in arrays.items()}
    for name in KERAS:
        model = sources.keras_model(CASES[name].keras, CASES[name].x)
        arrays = {v.path: np.asarray(v.value) for v in model.weights} | {"output": np.asarray(model(CASES[name].x))}
        found |= {f"keras|{name}|{key}": value for key, value in arrays.items()}
    np.savez_compressed(FILE, **found)
    print(f"{len(found)} arrays, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
