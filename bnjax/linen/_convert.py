"""Weights of PyTorch and Keras for linen models, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import linen as nn

from bnjax._lifecycle.arguments import check_values
from bnjax._lifecycle.convert import verbs
from bnjax._lifecycle.convert.ask import Ask
from bnjax._lifecycle.convert.exports import Rename as Names
from bnjax._lifecycle.convert.renamed import Rename
from bnjax._lifecycle.report import Report
from bnjax.linen._convert_model import LinenModel
from bnjax.linen._recalibrate import Call, default_call


def from_torch(
    source: Any,
    model: nn.Module,
    variables: Any,
    example: Any,
    *,
    call: Call = default_call,
    rename: Rename | None = None,
    keep: str | None = None,
    expect: tuple[Any, Any] | None = None,
) -> tuple[Any, Report]:
    """Weights of PyTorch as the variables of a model.

    The traced model says which layers there are, what they want and in which order they are called. Arrays are put
    into Flax's layout: convolutions of every rank, grouped, depthwise and transposed; dense layers, after a flatten
    with the features in Flax's order; embeddings; norms with their statistics; projections of attentions; weight norm,
    also where only one of the two models has it; stacks of `nn.scan` and `nn.vmap`; scales used as `1 + scale`.

    Which array goes where is found by `rename`, if it is given. Else by names, if all of them are the same; by shapes;
    and among layers of one shape by the order of the calls, which a module has and arrays alone have not.
    What stays ambiguous raises, with both lists side by side.

    With a module of PyTorch, both models run on the example, and the outputs of all layers are compared. The first
    difference raises: at which layer, by how much, and what to write, such as the padding where Flax's `"SAME"` is
    another than PyTorch's.

    Args:
      source: an `nn.Module` of PyTorch; or arrays by name, as `state_dict()` returns; or a file of these:
        `.safetensors`, `.safetensors.index.json` with its shards beside it, or `.npz`. A pickle is never read.
      model: an unmodified linen model.
      variables: all its variables, or their shapes (`jax.eval_shape` of `model.init`). They stay as they are.
      example: a batch of the Flax model: (N, ..., channels). A module of PyTorch gets channels on axis 1; a tuple is
        given as several arguments, a mapping by name.
      call: `call(model, example)` runs the model as for evaluation.
      rename: `rename(name)` gives for the name of an array a path such as `"params/conv1/kernel"`, with `"[2]"` after
        it for a slice of a stack; or None to skip the array; or a pair of a path and a function of the array. The three
        parts of an attention's `in_proj_weight` are named `"in_proj_weight[0/3]"`, and so on.
      keep: a regular expression that is found in the paths of leaves which stay as they are, such as a new head's.
      expect: a batch, and the output of the model for it. It must come out; then the order of definition counts.

    Returns:
      The variables, with the containers, dtypes and sharding of before; and a `Report` with a row for each layer: from
      where, and the largest difference of its output, relative to the largest entry, as `error`.

    Raises:
      ValueError: a source that cannot be read; layers that do not fit or are ambiguous; a variable that nothing sets;
        models that compute something else.

    >>> model = nn.Dense(2)
    >>> x = jnp.ones((1, 3))
    >>> shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    >>> variables, report = from_torch({"fc.weight": np.ones((2, 3)), "fc.bias": np.zeros(2)}, model, shapes, x)
    >>> print(variables["params"]["kernel"].shape, report[""].evidence["from"])
    (3, 2) fc
    """
    linen = LinenModel(model, variables, call)
    new, report = verbs.from_torch(source, linen, Ask("from_torch", example, rename, keep, expect))
    return linen.tree(new), report


def from_keras(
    source: Any,
    model: nn.Module,
    variables: Any,
    example: Any,
    *,
    call: Call = default_call,
    rename: Rename | None = None,
    keep: str | None = None,
    expect: tuple[Any, Any] | None = None,
) -> tuple[Any, Report]:
    """Weights of Keras 3 as the variables of a model.

    As `from_torch`. Keras has Flax's layout but for depthwise, separable and transposed convolutions. Its norms have
    another epsilon, 1e-3: with a model of Keras at hand, the difference is named.

    Args:
      source: a model of Keras; or arrays by the paths of its variables, or a file of these. A file `.weights.h5` does
        not say which layer is which: load it in Keras, and give the model.
      model: an unmodified linen model.
      variables: all its variables, or their shapes. They stay as they are.
      example: a batch, of the Flax model and of Keras's.
      call: `call(model, example)` runs the model as for evaluation.
      rename: as in `from_torch`, with the paths of Keras's variables: `"sequential/conv2d/kernel"`.
      keep: as in `from_torch`.
      expect: as in `from_torch`.

    Returns:
      The variables and a `Report`, as `from_torch`.

    Raises:
      ValueError: as `from_torch`.

    >>> model, x = nn.Dense(2), jnp.ones((1, 3))
    >>> shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    >>> variables, _ = from_keras({"dense/kernel": np.ones((3, 2)), "dense/bias": np.zeros(2)}, model, shapes, x)
    >>> print(variables["params"]["kernel"].shape)
    (3, 2)
    """
    linen = LinenModel(model, variables, call)
    new, report = verbs.from_keras(source, linen, Ask("from_keras", example, rename, keep, expect))
    return linen.tree(new), report


def to_torch(
    model: nn.Module, variables: Any, example: Any, *, call: Call = default_call, rename: Names | None = None
) -> dict[str, np.ndarray]:
    """The variables of a model as arrays for PyTorch's `load_state_dict`: the inverse of `from_torch`, to the bit.

    Args:
      model: an unmodified linen model.
      variables: all its variables.
      example: a batch, or its shapes: the model is traced, and not run.
      call: `call(model, example)` runs the model as for evaluation.
      rename: the names; by default paths with dots: `"params/conv1/kernel"` is `"conv1.weight"`. A `Report` of
        `from_torch` gives the names, shapes and parametrizations of before. Or a function: `rename(path)` gives a name,
        None to leave it out, or a pair of a name and a function of the array.

    Returns:
      Arrays by name, each in C order, as safetensors needs them; batch norms have a `num_batches_tracked`.

    Raises:
      ValueError: a variable of no known layer, without a function that names it; a name for two arrays.

    >>> model, x = nn.Sequential([nn.Dense(2)]), jnp.ones((1, 3))
    >>> arrays = to_torch(model, model.init(jax.random.key(0), x), x)
    >>> {name: array.shape for name, array in arrays.items()}
    {'layers_0.bias': (2,), 'layers_0.weight': (2, 3)}
    """
    check_values("variables", variables)
    return verbs.to_torch(LinenModel(model, variables, call), example, rename)
