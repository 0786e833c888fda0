"""What the models of `models_linen` and `models_nnx` are given: batches, and variables as if they were trained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Case:
    """A model, how it is called, and batches for it. `make` is given nothing (linen) or the `Rngs` (nnx).

    `call(model, batch)` evaluates and `train(model, batch)` trains. The flags say what is special:

    - "axis": training needs the axis "batch"; "dropout": training needs random numbers.
    - "stacked": statistics of several norms in one array; "repeated": a norm that is called several times.
    - "foreign": a class of its own whose state holds mean and var; "more": batch statistics beside mean and var.
    - "broadcast": statistics that a scan shares, so that training raises.
    - "frozen", "boxed": how the variables are held. "masked", "bfloat16": what the norms are given.
    - "wrapped": weights under spectral and weight norm; "none": no batch norm.
    """

    make: Callable[..., Any]
    draw: Callable[[np.random.Generator, int], Any]
    call: Callable[[Any, Any], Any]
    train: Callable[[Any, Any], Any]
    flags: frozenset[str] = frozenset()
    prepare: Callable[[Any], Any] = lambda variables: variables

    def batches(self, n, size=4, last=None):
        """n batches of `size` examples, whose means differ; the last may have another size."""
        sizes = [size] * (n - 1) + [last or size] if n else []
        return [self.draw(np.random.default_rng(i), k) for i, k in enumerate(sizes)]

    @property
    def example(self):
        return self.batches(1)[0]


def values(*shape):
    """Draws arrays of this shape, each batch about a mean of its own."""
    return lambda rng, n: (rng.normal(size=(n, *shape)) + rng.normal(size=shape[-1])).astype(np.float32)


def images(rng, n):
    return values(8, 8, 3)(rng, n)


def sequences(rng, n):
    """Sequences and which of their positions are valid: at least two of each."""
    lengths = rng.integers(2, 7, size=n)
    return {"x": values(6, 8)(rng, n), "mask": np.arange(6) < lengths[:, None]}


def as_if_trained(variables, seed=0):
    """The same tree with random statistics and parameters, but for kernels, which stay as they were drawn."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(variables)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [moved(name_of(path), np.asarray(t), rng) for path, t in leaves])


def name_of(path):
    """The last name of a path; boxes and variables add "value" to it."""
    names = [str(getattr(k, "key", getattr(k, "name", k))) for k in path]
    return names[-2] if names[-1] == "value" and len(names) > 1 else names[-1]


def moved(name, leaf, rng):
    if leaf.dtype.kind in "iu" or name.endswith(("kernel", "/u", "sigma", "embedding")):
        return leaf
    r = rng.normal(size=leaf.shape)
    value = np.exp(r / 2) if name == "var" else 1 + 0.3 * r if name.endswith("scale") else 0.3 * r
    return value.astype(leaf.dtype)
