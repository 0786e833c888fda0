"""Weights of PyTorch and Keras for nnx models, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

from bnjax._lifecycle.arguments import check_values
from bnjax._lifecycle.convert import verbs
from bnjax._lifecycle.convert.ask import Ask
from bnjax._lifecycle.convert.exports import Rename as Names
from bnjax._lifecycle.convert.renamed import Rename
from bnjax._lifecycle.report import Report
from bnjax.nnx._convert_model import NnxModel
from bnjax.nnx._recalibrate import Call, default_call


def from_torch(
    source: Any,
    model: nnx.Module,
    example: Any,
    *,
    call: Call = default_call,
    rename: Rename | None = None,
    keep: str | None = None,
    expect: tuple[Any, Any] | None = None,
) -> Report:
    """Puts weights of PyTorch into a model, in place.

    The traced model says which layers there are, what they want and in which order they are called. Arrays are put
    into Flax's layout: convolutions of every rank, grouped, depthwise and transposed; dense layers, after a flatten
    with the features in Flax's order; embeddings; norms with their statistics; projections of attentions; weight norm,
    also where only one of the two models has it; stacks of `nnx.vmap`; scales used as `1 + scale`.

    Which array goes where is found by `rename`, if it is given. Else by names, if all of them are the same; by shapes;
    and among layers of one shape by the order of the calls, which a module has and arrays alone have not.
    What stays ambiguous raises, with both lists side by side.

    With a module of PyTorch, both models run on the example, and the outputs of all layers are compared. The first
    difference raises: at which layer, by how much, and what to write, such as the padding where Flax's `"SAME"` is
    another than PyTorch's.

    Args:
      source: an `nn.Module` of PyTorch; or arrays by name, as `state_dict()` returns; or a file of these:
        `.safetensors`, `.safetensors.index.json` with its shards beside it, or `.npz`. A pickle is never read.
      model: an unmodified nnx model. Where an error is raised, it stays as it is.
      example: a batch of the Flax model: (N, ..., channels). A module of PyTorch gets channels on axis 1; a tuple is
        given as several arguments, a mapping by name.
      call: `call(model, example)` runs the model, a copy after `model.eval()`.
      rename: `rename(name)` gives for the name of an array a path such as `"conv1/kernel"`, with `"[2]"` after it for a
        slice of a stack; or None to skip the array; or a pair of a path and a function of the array. The three
        parts of an attention's `in_proj_weight` are named `"in_proj_weight[0/3]"`, and so on.
      keep: a regular expression that is found in the paths of leaves which stay as they are, such as a new head's.
      expect: a batch, and the output of the model for it. It must come out; then the order of definition counts.

    Returns:
      A `Report` with a row for each layer: from where, and the largest difference of its output, relative to the
      largest entry, as `error`.

    Raises:
      ValueError: a source that cannot be read; layers that do not fit or are ambiguous; a variable that nothing sets;
        models that compute something else.

    >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    >>> report = from_torch({"fc.weight": np.ones((2, 3)), "fc.bias": np.zeros(2)}, model, jnp.ones((1, 3)))
    >>> print(model.kernel.shape, report[""].evidence["from"])
    (3, 2) fc
    """
    copy = NnxModel(model, call)
    new, report = verbs.from_torch(source, copy, Ask("from_torch", example, rename, keep, expect))
    nnx.update(model, copy.state(new))
    return report


def from_keras(
    source: Any,
    model: nnx.Module,
    example: Any,
    *,
    call: Call = default_call,
    rename: Rename | None = None,
    keep: str | None = None,
    expect: tuple[Any, Any] | None = None,
) -> Report:
    """Puts weights of Keras 3 into a model, in place.

    As `from_torch`. Keras has Flax's layout but for depthwise, separable and transposed convolutions. Its norms have
    another epsilon, 1e-3: with a model of Keras at hand, the difference is named.

    Args:
      source: a model of Keras; or arrays by the paths of its variables, or a file of these. A file `.weights.h5` does
        not say which layer is which: load it in Keras, and give the model.
      model: an unmodified nnx model. Where an error is raised, it stays as it is.
      example: a batch, of the Flax model and of Keras's.
      call: `call(model, example)` runs the model, a copy after `model.eval()`.
      rename: as in `from_torch`, with the paths of Keras's variables: `"sequential/conv2d/kernel"`.
      keep: as in `from_torch`.
      expect: as in `from_torch`.

    Returns:
      A `Report`, as `from_torch`.

    Raises:
      ValueError: as `from_torch`.

    >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    >>> report = from_keras({"dense/kernel": np.ones((3, 2)), "dense/bias": np.zeros(2)}, model, jnp.ones((1, 3)))
    >>> print(model.kernel[...].sum(), report[""].evidence["from"])
    6.0 dense
    """
    copy = NnxModel(model, call)
    new, report = verbs.from_keras(source, copy, Ask("from_keras", example, rename, keep, expect))
    nnx.update(model, copy.state(new))
    return report


def to_torch(
    model: nnx.Module, example: Any, *, call: Call = default_call, rename: Names | None = None
) -> dict[str, np.ndarray]:
    """The variables of a model as arrays for PyTorch's `load_state_dict`: the inverse of `from_torch`, to the bit.

    Args:
      model: an unmodified nnx model.
      example: a batch, or its shapes: the model is traced, and not run.
      call: `call(model, example)` runs the model, a copy after `model.eval()`.
      rename: the names; by default paths with dots: `"conv1/kernel"` is `"conv1.weight"`. A `Report` of `from_torch`
        gives the names, shapes and parametrizations of before. Or a function: `rename(path)` gives a name, None to
        leave it out, or a pair of a name and a function of the array.

    Returns:
      Arrays by name, each in C order, as safetensors needs them; batch norms have a `num_batches_tracked`.

    Raises:
      ValueError: a variable of no known layer, without a function that names it; a name for two arrays.

    >>> arrays = to_torch(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), jnp.ones((1, 3)))
    >>> {name: array.shape for name, array in arrays.items()}
    {'bias': (2,), 'weight': (2, 3)}
    """
    nnx_model = NnxModel(model, call)
    check_values("model", nnx_model.leaves)
    return verbs.to_torch(nnx_model, example, rename)
