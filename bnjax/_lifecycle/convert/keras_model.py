"""A model of Keras at hand: its arrays, the order of its calls, and what its layers compute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bnjax._lifecycle.convert.origin import Origin, Ran, Run, check_example, in_order_of_calls
from bnjax._lifecycle.convert.sources import read
from bnjax._lifecycle.convert.units import Unit, units_of


def keras_origin(source: Any, example: Any) -> Origin:
    """The layers of a source of Keras.

    Args:
      source: a model, or arrays by the paths of variables.
      example: the Flax model's.

    Raises:
      ValueError: no source; a model that does not take the example.
    """
    if isinstance(source, type) or not hasattr(source, "_flatten_layers"):
        return Origin("keras", units_of(read(source), "/"))
    check_example(example)
    if not source.built:
        _run(source, {}, example)  # which makes its variables
    layers = {_name(layer): layer for layer in source._flatten_layers() if not list(_inner(layer))}
    layers |= {_name(layer): layer for layer in source._flatten_layers() if _own(layer)}
    units = [unit for name, layer in layers.items() for unit in _units(name, layer)]
    run = _run(source, layers, example)
    return Origin("keras", in_order_of_calls(units, run.calls), run)


def _inner(layer: Any) -> Iterator[Any]:
    """The layers inside of a layer."""
    yield from (each for each in layer._flatten_layers(include_self=False))


def _own(layer: Any) -> list[Any]:
    """The variables that a layer holds itself."""
    inner = {id(v) for each in _inner(layer) for v in each.variables}
    return [v for v in layer.variables if id(v) not in inner]


def _name(layer: Any) -> str:
    own = _own(layer)
    return own[0].path.rpartition("/")[0] if own else layer.name


def _units(name: str, layer: Any) -> Iterator[Unit]:
    """The units of a layer; of a separable convolution there are two."""
    import keras

    arrays = {v.path: np.asarray(keras.ops.convert_to_numpy(v.value)) for v in _own(layer)}
    for unit in units_of(arrays, "/"):
        last = unit.name.rpartition("/")[2]
        unit.owner, unit.settings = name, settings(layer)
        unit.sees = "neither" if last == "depthwise" else "output" if last == "pointwise" else unit.sees
        unit.sees = "neither" if "value" in unit.tensors else unit.sees
        yield unit


def settings(layer: Any) -> dict[str, Any]:
    """What a layer is set to, in Flax's words."""
    found: dict[str, Any] = {}
    for theirs, ours in (("epsilon", "epsilon"), ("momentum", "momentum"), ("strides", "strides")):
        if getattr(layer, theirs, None) is not None:
            found[ours] = getattr(layer, theirs)
    if getattr(layer, "dilation_rate", None) is not None:
        found["kernel_dilation"] = layer.dilation_rate
    if isinstance(getattr(layer, "padding", None), str):
        found["padding"] = layer.padding.upper()
    return found


def _run(model: Any, layers: Mapping[str, Any], example: Any) -> Run:
    """Runs a model as for evaluation, and leaves it as it was."""
    calls: list[Ran] = []
    for name, layer in layers.items():
        # Past Keras, which keeps account of what is set on a layer.
        object.__setattr__(layer, "call", _noted(calls, name, layer, layer.call))
    try:
        output = model(list(example) if isinstance(example, tuple) else example, training=False)
    except Exception as error:  # of Keras's backends, of several kinds
        raise ValueError(
            f"`source` does not take `example`: {error}\nGive its arrays in its place, "
            "`{v.path: v for v in source.weights}`, and `expect=(batch, output)`, which checks them."
        ) from error
    finally:
        for layer in layers.values():
            del layer.__dict__["call"]
    return Run(calls, _numpy(output))


def _noted(calls: list[Ran], name: str, layer: Any, call: Any) -> Any:
    def noted(*args: Any, **kwargs: Any) -> Any:
        before: list[Any] = []
        with _activation_noted(layer, before):
            y = call(*args, **kwargs)
        x = next(iter((*args, *kwargs.values())), None)
        shown = f"{type(layer).__name__}({', '.join(f'{k}={v!r}' for k, v in settings(layer).items())})"
        calls.append(Ran(name, _numpy(x), _numpy(before[0] if before else y), shown, settings(layer)))
        return y

    return noted


@contextlib.contextmanager
def _activation_noted(layer: Any, before: list[Any]) -> Iterator[None]:
    """While this holds, `before` gets what the activation of a layer is given: in Flax it is no part of the layer."""
    activation = vars(layer).get("activation")
    if activation is None:
        yield
        return

    def noted(y: Any) -> Any:
        before.append(y)
        return activation(y)

    object.__setattr__(layer, "activation", noted)
    try:
        yield
    finally:
        object.__setattr__(layer, "activation", activation)


def _numpy(value: Any) -> Any:
    """Tensors of the backend as arrays; all else as it is."""
    import keras

    if isinstance(value, Mapping):
        return {name: _numpy(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return tuple(map(_numpy, value))
    return np.asarray(keras.ops.convert_to_numpy(value)) if keras.ops.is_tensor(value) else value
