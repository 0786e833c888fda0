"""What changes the norms of an unmodified nnx model in place: `upgrade`, `swap`, `freeze`, `unfreeze`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from bnjax._lifecycle.overrides import Entry, Freeze, Swap, Upgrade, check_match, hashable_options, plan_for, refusal
from bnjax._lifecycle.refusals import FROZEN_TOO, foreign, refused
from bnjax._lifecycle.report import Report, Row, raise_if_nothing_done
from bnjax._lifecycle.swap import kind_named, target_named
from bnjax._lifecycle.trees import State
from bnjax._modules.call import check_batch_norm
from bnjax.nnx._batch import BatchNorm
from bnjax.nnx._make import make_norm
from bnjax.nnx._swap import become, replacement, unfit
from bnjax.nnx._twins import (
    ADDED,
    check_model,
    class_of,
    cut_off,
    freeze_class,
    frozen,
    kind_of,
    modules_with_paths,
    owner_names,
    set_class,
    thaw_class,
    tracks,
    upgraded,
    variables,
)

NO_OPTIONS = {
    "num_features", "param_dtype", "use_bias", "use_scale", "bias_init", "scale_init", "bias_metadata",
    "scale_metadata", "rngs", "self",
}  # fmt: skip
OPTIONS = [n for n in inspect.signature(BatchNorm.__init__).parameters if n not in NO_OPTIONS]


def upgrade(model: nnx.Module, match: str = ".*", **options: Any) -> Report:
    """In place: the batch norms of an unmodified model run through bnjax.

    They stay the objects that they are, with their Variables: optimizers that there are already, modules that are
    shared or stacked, and transformations go on as before. Of a subclass of `nnx.BatchNorm` what it adds is kept, and
    its `super().__call__` is ours. What was compiled before (`jax.jit(f).lower(...).compile()`) stays as it is.

    Args:
      model: its norms are changed.
      match: a regular expression that is found (`re.search`) in the path of a norm.
      **options: attributes of `bnjax.nnx.BatchNorm`, in the place of the model's own; hashable. Those that make
        parameters are no options.

    Returns:
      The `Report`: which norms were upgraded, and why not the others.

    Raises:
      ValueError: no such attribute, or a value that has no meaning; no norm was upgraded.

    >>> model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    >>> report = upgrade(model, unbiased=True)
    >>> y = model(jnp.array([[1.0, 0.0], [3.0, 4.0]]))
    >>> print(model.var[...], report.done)
    [1.01 1.07] ('',)
    """
    check_match(match)
    entry = Upgrade(match, hashable_options(options, "`BatchNorm` that an option can set", OPTIONS))
    BatchNorm(1, **options, rngs=nnx.Rngs(0))  # raises for values that have no meaning
    work = _survey(model, "upgrade", entry, lambda norm: _not_upgraded(norm.module, options))
    for norm in work.todo:
        own = dict(ADDED) | vars(norm.module) | {"use_running_average": None}  # which `model.eval()` has set
        check_batch_norm(SimpleNamespace(**(own | options)))  # type: ignore[arg-type]
    for norm in work.todo:
        _upgraded(norm.module, options)
    return work.report


def swap(
    model: nnx.Module,
    name: str,
    match: str = ".*",
    *,
    kind: str | None = None,
    rngs: nnx.Rngs | None = None,
    **options: Any,
) -> Report:
    """In place: the norms of an unmodified model become another norm. Make optimizers anew afterwards.

    They stay the objects that they are. Parameters of equal name and shape are kept, and so is a mean and a variance.
    The new norm has its own defaults; from the old one it has the axis, the dtypes, which parameters there are and,
    where both have a running state, `momentum`, `epsilon` and `axis_name`. Of groups there are as many as `num_groups`
    says, or the next smaller number that divides the channels.

    Args:
      model: its norms are changed.
      name: of `bnjax.NORMS`; or "none", the identity.
      match: a regular expression that is found (`re.search`) in the path of a norm.
      kind: of the norms to swap, a name of `bnjax.NORMS`; by default all norms of activations.
      rngs: makes the parameters that are missing.
      **options: attributes of the new norm; hashable.

    Returns:
      The `Report`: which norms were swapped, and why not the others.

    Raises:
      ValueError: no such norm or attribute; a parameter that is missing, and no `rngs`; no norm was swapped. The model
        is as it was then.

    >>> model = nnx.LayerNorm(2, rngs=nnx.Rngs(0))
    >>> report = swap(model, "rms")
    >>> print(model(jnp.array([[1.0, 7.0]])).round(1))
    [[0.2 1.4]]
    """
    check_match(match)
    target_named(name)
    make_norm(name, **options)  # type: ignore[arg-type]  # raises for options that it does not take
    entry = Swap(match, name, kind_named(kind), hashable_options(options, repr(name), options))
    work = _survey(model, "swap", entry, lambda norm: unfit(norm.module, entry))
    new = [replacement(norm.module, norm.path, entry, rngs) for norm in work.todo]
    for norm, other in zip(work.todo, new, strict=True):
        held = thaw_class(norm.module)
        become(norm.module, other)
        if held is not None:
            freeze_class(norm.module, held)
    return work.report


def freeze(
    model: nnx.Module, match: str = ".*", *, use: bool = True, update: bool = False, parameters: bool = False
) -> Report:
    """In place: norms of an unmodified model are held, through `model.train()`, too, until `unfreeze`.

    What another `freeze`, `upgrade` or `swap` does later, what is frozen stays frozen. A parameter without a gradient
    may still move: weight decay moves it. `frozen_labels` holds parameters.

    Args:
      model: its norms are held.
      match: a regular expression that is found (`re.search`) in the path of a norm.
      use: normalize by the running state in training, too.
      update: the running state steps in training.
      parameters: no gradient reaches the scale and the bias.

    Returns:
      The `Report`: which norms were frozen, and why not the others.

    Raises:
      ValueError: no norm was frozen.

    >>> model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    >>> report = freeze(model)
    >>> model.train()
    >>> y = model(jnp.array([[1.0, 0.0], [3.0, 4.0]]))
    >>> print(model.mean[...])
    [0. 0.]
    """
    entry = Freeze.checked(match, use, update, parameters)
    work = _survey(model, "freeze", entry, lambda norm: cut_off(class_of(norm.module)))
    for norm in work.todo:
        held = plan_for([e for e in (entry, thaw_class(norm.module)) if e is not None], norm.path, norm.kind).freeze
        assert held is not None
        freeze_class(norm.module, held)
    return work.report


def unfreeze(model: nnx.Module, match: str = ".*") -> Report:
    """In place: norms that `freeze` holds are what they were before.

    Args:
      model: its norms are no longer held.
      match: a regular expression that is found (`re.search`) in the path of a norm.

    Returns:
      The `Report`: which norms were frozen.

    Raises:
      ValueError: no norm was frozen.

    >>> model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    >>> report = freeze(model)
    >>> unfreeze(model).done, type(model) is nnx.BatchNorm
    (('',), True)
    """
    check_match(match)
    entry = Freeze(match, use=True, update=False, parameters=True)
    work = _survey(model, "unfreeze", entry, lambda norm: None if frozen(norm.module) else "it is not frozen")
    for norm in work.todo:
        thaw_class(norm.module)
    return work.report


class _Norm(NamedTuple):
    path: str
    module: nnx.Module
    kind: str


class _Work(NamedTuple):
    todo: list[_Norm]
    report: Report


def _survey(model: nnx.Module, verb: str, entry: Entry, why_not: Callable[[_Norm], str | None]) -> _Work:
    """The norms that an entry selects and that can do it, and the report.

    Raises:
      ValueError: there are none.
    """
    check_model(model)
    todo, rows, unselected = [], {}, []
    for path, module in modules_with_paths(model):
        if (kind := kind_of(type(module))) is None:
            continue
        norm, passed_over = _Norm(path, module, kind), refusal(entry, path, kind)
        why = passed_over or refused(entry, kind, tracks(module)) or why_not(norm)
        if why is None:
            todo.append(norm)
        said = FROZEN_TOO if isinstance(entry, Upgrade) and frozen(module) else ""
        row = Row(path, kind, why is None, why or said)
        # Norms without a state that were not asked for are nothing to report, unless nothing else is.
        if passed_over and not variables(module, nnx.BatchStat):
            unselected.append(row)
        else:
            rows[path] = row
    rows = {row.path: row for row in _rows_of_state(model)} | rows
    raise_if_nothing_done(verb, Report([*rows.values(), *unselected]), "Check `match` against these paths.")
    return _Work(todo, Report(rows.values()))


def _rows_of_state(model: nnx.Module) -> Iterator[Row]:
    """A row for each pair and each other leaf, as if no norm had a state."""
    state, names = State.of(nnx.state(model, nnx.BatchStat)), owner_names(model)
    for path in state.pairs():
        yield Row(path, names[path], False, foreign(names[path]))
    yield from state.other_rows()


def _not_upgraded(module: nnx.Module, options: dict[str, Any]) -> str | None:
    """Why a batch norm cannot be upgraded; or nothing."""
    cls = class_of(module)
    own = [] if issubclass(cls, BatchNorm) else [n for n in ADDED if n in vars(module) or hasattr(cls, n)]
    if own:
        return f"its class `{cls.__name__}` has an attribute `{own[0]}` of its own"
    if options.get("track_running_stats") and not variables(module, nnx.BatchStat):
        return "it was made without a running state"
    return cut_off(cls)


def _upgraded(module: Any, options: dict[str, Any]) -> None:
    held = thaw_class(module)
    if not isinstance(module, BatchNorm):
        set_class(module, upgraded(class_of(module)))
        options = {**ADDED, **options}
    for name, value in options.items():
        setattr(module, name, value)
    if module.momentum is None and not hasattr(module, "count") and module.mean is not None:
        module.count = nnx.BatchStat(jnp.zeros(module.mean.shape))
    if held is not None:
        freeze_class(module, held)
