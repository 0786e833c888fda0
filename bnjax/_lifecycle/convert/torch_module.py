"""A module of PyTorch at hand: its arrays, the order of its calls, and what its layers compute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bnjax._lifecycle.convert.origin import Origin, Ran, Run, check_example, in_order_of_calls
from bnjax._lifecycle.convert.sources import array, read
from bnjax._lifecycle.convert.units import PARTS_OF, Unit, units_of


def torch_origin(source: Any, example: Any, *, sequences_first: bool) -> Origin:
    """The layers of a source of PyTorch.

    Args:
      source: a module, or arrays.
      example: the Flax model's.
      sequences_first: whether an input of rank 3 has channels on axis 1.

    Raises:
      ValueError: no source; a module that does not take the example.
    """
    if isinstance(source, type) or not (hasattr(source, "state_dict") and hasattr(source, "named_modules")):
        return Origin("torch", units_of(read(source)))
    check_example(example)
    state = source.state_dict()
    units = _once(units_of({name: array(value, name) for name, value in state.items()}), state)
    modules = dict(source.named_modules())
    for unit in units:
        _set_owner(unit)
        unit.settings = settings(modules.get(unit.owner or unit.name))
    owners = {unit.owner or unit.name for unit in units}
    run = _run(source, modules, owners, _channels_first(example, sequences_first))
    for unit in units:
        unit.offset = _offset(unit, modules, run.calls)
    return Origin("torch", in_order_of_calls(units, run.calls), run)


def _once(units: Iterable[Unit], state: Mapping[str, Any]) -> list[Unit]:
    """A module that has two names is there twice, with the same memory."""
    found: dict[Any, Unit] = {}
    for unit in units:
        names = [name.partition("[") for name in unit.names.values()]
        place = tuple((state[name].data_ptr(), part) for name, _, part in names if state[name].numel())
        found.setdefault(place or unit.name, unit)
    return list(found.values())


def _set_owner(unit: Unit) -> None:
    """An attention computes with its projections itself: nothing is seen but what the last of them gives."""
    if part := PARTS_OF.match(unit.name):
        unit.owner, unit.sees = part.group(1), "neither"
    elif unit.name.endswith("out_proj"):
        unit.owner, unit.sees = unit.name.removesuffix("out_proj").removesuffix("."), "output"


def settings(module: Any) -> dict[str, Any]:
    """What a layer is set to, in Flax's words."""
    found: dict[str, Any] = {}
    for theirs, ours in (
        ("eps", "epsilon"),
        ("stride", "strides"),
        ("dilation", "kernel_dilation"),
        ("num_groups", "num_groups"),
    ):
        if getattr(module, theirs, None) is not None:
            found[ours] = getattr(module, theirs)
    if isinstance(getattr(module, "momentum", None), float):
        found["momentum"] = 1 - module.momentum
    padding = getattr(module, "padding", None)
    if isinstance(padding, int | tuple):
        window = getattr(module, "kernel_size", 1)
        rank = len(window) if isinstance(window, tuple) else 2
        found["padding"] = tuple((p, p) for p in (padding if isinstance(padding, tuple) else (padding,) * rank))
    return found


def _channels_first(example: Any, sequences_first: bool) -> Any:
    """The example as a module of PyTorch takes it."""
    if isinstance(example, Mapping):
        return {name: _channels_first(value, sequences_first) for name, value in example.items()}
    if isinstance(example, tuple | list):
        return type(example)(_channels_first(value, sequences_first) for value in example)
    value = np.asarray(example)
    if value.ndim > 3 or (value.ndim == 3 and sequences_first):
        value = np.moveaxis(value, -1, 1)
    return np.ascontiguousarray(value)


def _run(module: Any, modules: Mapping[str, Any], owners: Iterable[str], example: Any) -> Run:
    """Runs a module as for evaluation, and leaves it as it was."""
    import torch

    calls: list[Ran] = []
    hooks = [
        each.register_forward_hook(_note(calls, name, each), with_kwargs=True)
        for name, each in modules.items()
        if name in owners or not any(True for _ in each.children())
    ]
    training = {name: each.training for name, each in modules.items()}
    module.eval()
    first = next(module.parameters(), torch.zeros(()))

    def given(value: Any) -> Any:
        tensor = torch.from_numpy(np.array(value))
        return tensor.to(first.device, first.dtype if tensor.is_floating_point() else None)

    try:
        with torch.no_grad():
            if isinstance(example, Mapping):
                output = module(**{name: given(value) for name, value in example.items()})
            else:
                output = module(*map(given, example if isinstance(example, tuple | list) else (example,)))
    except Exception as error:  # somebody's code
        raise ValueError(
            "`source` does not take `example`, which it gets with channels on axis 1 (a tuple as arguments, a mapping "
            f"by name); it raised {type(error).__name__}: {error}\nGive `source.state_dict()` in its place, and "
            "`expect=(batch, output)` for a check."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for name, each in modules.items():
            each.training = training[name]
    return Run(calls, _numpy(output))


def _offset(unit: Unit, modules: Mapping[str, Any], calls: Iterable[Ran]) -> float:
    """What a module of somebody's own adds to its scale: 1 where a scale of zeros does not make zeros, else 0."""
    module, call = modules.get(unit.name), next((call for call in calls if call.name == unit.name), None)
    own = [p for role in ("weight", "bias") if (p := getattr(module, role, None)) is not None and role in unit.tensors]
    if call is None or not own or type(module).__module__.startswith("torch.") or unit.tensors["weight"].ndim != 1:
        return 0.0
    import torch

    with torch.no_grad():
        before = [p.clone() for p in own]
        try:
            for p in own:
                p.zero_()
            y = module(torch.from_numpy(call.x).to(own[0].device, own[0].dtype))  # type: ignore[misc]
        except Exception:  # somebody's code, called otherwise: then it is taken for a plain scale, and outputs compared
            return 0.0
        finally:
            for p, value in zip(own, before, strict=True):
                p.copy_(value)
    return float(bool((y != 0).any()))


def _note(calls: list[Ran], name: str, module: Any) -> Any:
    def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        x = next(iter((*args, *kwargs.values())), None)
        y = output[0] if isinstance(output, tuple) else output
        calls.append(Ran(name, _numpy(x), _numpy(y), str(module).split("\n")[0], settings(module)))

    return hook


def _numpy(value: Any) -> Any:
    """Tensors as arrays; all else as it is."""
    if hasattr(value, "detach"):
        return np.array(array(value, "an output"))  # a copy: what is done in place later is not seen
    if isinstance(value, Mapping):
        return {name: _numpy(one) for name, one in value.items()}
    return tuple(map(_numpy, value)) if isinstance(value, tuple | list) else value
