"""Writes the golden files: what PyTorch's BatchNorm computes. `python -m tests.golden.make`, where torch is installed.

Each file holds five training steps, with one of gradient descent on scale and bias after each, and an
evaluation. Momentum 0.1 (theirs: the fraction taken), eps 1e-5: PyTorch's defaults.
"""

from pathlib import Path

import numpy as np

STEPS, RATE = 5, 0.1
SHAPES = {"nc": (8, 3), "ncl": (4, 3, 5), "nchw": (3, 4, 3, 2)}
DTYPES = ("float32", "float64")


def inputs(shape, dtype):
    """Data that drift, cotangents, and the parameters to start from."""
    rng = np.random.default_rng(sum(shape))
    features = shape[1]
    drift = np.arange(STEPS + 1).reshape(-1, *(1,) * len(shape)) / 4
    x = rng.normal(size=(STEPS + 1, *shape)) * rng.uniform(0.5, 2, (features, *(1,) * (len(shape) - 2))) + drift
    g = rng.normal(size=x.shape)
    scale, bias = rng.uniform(0.5, 2, features), rng.normal(size=features)
    return {name: value.astype(dtype) for name, value in {"x": x, "g": g, "scale": scale, "bias": bias}.items()}


def run(arrays):
    """What is to be reproduced: of every step and, last, of the evaluation; the running state after every step."""
    import torch

    kinds = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}
    given = {name: torch.from_numpy(value) for name, value in arrays.items()}
    layer = kinds[given["x"].ndim - 1](len(given["scale"]), dtype=given["x"].dtype)
    with torch.no_grad():
        layer.weight.copy_(given["scale"])
        layer.bias.copy_(given["bias"])
    seen = {name: [] for name in ("y", "dx", "dscale", "dbias", "running_mean", "running_var")}
    for i, (x, g) in enumerate(zip(given["x"], given["g"], strict=True)):
        layer.train(i < STEPS)
        x.requires_grad_()
        y = layer(x)
        grads = torch.autograd.grad((y * g).sum(), (x, layer.weight, layer.bias))
        for name, value in zip(seen, (y, *grads, layer.running_mean, layer.running_var), strict=True):
            seen[name].append(value.detach().numpy().copy())
        with torch.no_grad():
            layer.weight -= RATE * grads[1]
            layer.bias -= RATE * grads[2]
    return {name: np.stack(values) for name, values in seen.items()}


if __name__ == "__main__":
    for name, shape in SHAPES.items():
        for dtype in DTYPES:
            arrays = inputs(shape, dtype)
            np.savez_compressed(Path(__file__).parent / f"{name}_{dtype}.npz", **arrays, **run(arrays))
