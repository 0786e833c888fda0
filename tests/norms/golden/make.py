"""Writes the golden files: what PyTorch's norms compute. `python -m tests.norms.golden.make` needs torch.

Each file of BatchNorm holds five training steps, with one of gradient descent on scale and bias after each, and an
evaluation. Momentum 0.1 (theirs: the fraction taken), eps 1e-5: PyTorch's defaults. Each file of the others holds
output and gradients of all in `LAYERS`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

STEPS, RATE = 5, 0.1
SHAPES = {"nc": (8, 3), "ncl": (4, 3, 5), "nchw": (3, 4, 3, 2)}
DTYPES = ("float32", "float64")


class Layer(NamedTuple):
    theirs: Callable[[Any], Any]  # of torch.nn
    ours: Callable[[Any, Any, dict], Any]  # of bnjax, the input, and the parameters and buffers by PyTorch's names
    shape: tuple[int, ...]  # of the input, channels first


def affine(p):
    return p["weight"], p["bias"]


LAYERS = {
    "layer": Layer(
        lambda nn: nn.LayerNorm(6),
        lambda b, x, p: b.layer_norm(x, *affine(p), epsilon=1e-5),
        (3, 2, 6),
    ),
    "layer, two axes": Layer(
        lambda nn: nn.LayerNorm((2, 6)),
        lambda b, x, p: b.layer_norm(x, *affine(p), axis=(1, 2), epsilon=1e-5),
        (3, 2, 6),
    ),
    "rms": Layer(
        lambda nn: nn.RMSNorm(6, eps=1e-5),
        lambda b, x, p: b.rms_norm(x, p["weight"], epsilon=1e-5),
        (3, 2, 6),
    ),
    "group": Layer(
        lambda nn: nn.GroupNorm(2, 4),
        lambda b, x, p: b.group_norm(x, *affine(p), num_groups=2, axis=1, epsilon=1e-5),
        (2, 4, 3, 2),
    ),
    "instance, 1d": Layer(
        lambda nn: nn.InstanceNorm1d(3, affine=True),
        lambda b, x, p: b.instance_norm(x, *affine(p), axis=1, epsilon=1e-5),
        (2, 3, 5),
    ),
    "instance, 2d": Layer(
        lambda nn: nn.InstanceNorm2d(3, affine=True),
        lambda b, x, p: b.instance_norm(x, *affine(p), axis=1, epsilon=1e-5),
        (2, 3, 3, 2),
    ),
    "lrn, odd": Layer(
        lambda nn: nn.LocalResponseNorm(3, alpha=0.5, beta=0.6, k=1.5),
        lambda b, x, p: b.local_response_norm(x, size=3, alpha=0.5 / 3, beta=0.6, k=1.5, axis=1),
        (2, 6, 3),
    ),
    "lrn, even": Layer(
        lambda nn: nn.LocalResponseNorm(4, alpha=0.5),
        lambda b, x, p: b.local_response_norm(x, size=4, alpha=0.5 / 4, k=1.0, axis=1),
        (2, 6, 3),
    ),
    "weight": Layer(
        lambda nn: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3, bias=False)),
        lambda b, x, p: x @ b.weight_norm(p["original1"], p["original0"], axis=0, epsilon=0.0).T,
        (2, 4),
    ),
    # Theirs begins a step with the other vector, which ours of the transposed matrix does.
    "spectral": Layer(
        lambda nn: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3, bias=False), n_power_iterations=2),
        lambda b, x, p: x @ b.spectral_norm(p["original"], p["_v"], n_steps=2)[0].T,
        (2, 4),
    ),
}


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


def run_layer(layer, dtype):
    """Input, cotangent, output, and by their names parameters, buffers (as they were before), and gradients."""
    import torch

    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    module = layer.theirs(torch.nn).to(getattr(torch, dtype))
    params = {name.split(".")[-1]: value for name, value in module.named_parameters()}
    with torch.no_grad():
        for value in params.values():
            value.copy_(torch.from_numpy(rng.normal(size=value.shape)))
    seen = {name.split(".")[-1]: value.clone() for name, value in module.named_buffers()}
    x, g = (torch.from_numpy((rng.normal(size=layer.shape) + 0.5).astype(dtype)) for _ in range(2))
    y = module(x.requires_grad_())
    g = g.flatten()[: y.numel()].reshape(y.shape)
    dx, *grads = torch.autograd.grad((y * g).sum(), (x, *params.values()))
    seen |= {"x": x, "g": g, "y": y, "dx": dx, **params}
    seen |= {f"d{name}": value for name, value in zip(params, grads, strict=True)}
    return {name: value.detach().numpy() for name, value in seen.items()}


if __name__ == "__main__":
    for dtype in DTYPES:
        arrays = {f"{name}/{k}": v for name, layer in LAYERS.items() for k, v in run_layer(layer, dtype).items()}
        np.savez_compressed(Path(__file__).parent / f"layers_{dtype}.npz", **arrays)
    for name, shape in SHAPES.items():
        for dtype in DTYPES:
            arrays = inputs(shape, dtype)
            np.savez_compressed(Path(__file__).parent / f"{name}_{dtype}.npz", **arrays, **run(arrays))
