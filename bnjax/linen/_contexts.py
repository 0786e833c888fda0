"""The contexts that change what the norms of an unmodified linen model do: `upgrade`, `swap`, `freeze`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from bnjax._lifecycle.overrides import Entry, Freeze, Swap, Upgrade, check_match, hashable_options
from bnjax._lifecycle.report import Report, raise_if_nothing_done
from bnjax._lifecycle.swap import kind_named, target_named
from bnjax.linen._batch import BatchNorm
from bnjax.linen._intercept import Record, in_force
from bnjax.linen._make import make_norm


class LiveReport(Report):
    """A report that is filled while functions are traced."""

    def __init__(self, record: Record):
        self._rows = record.rows


@contextlib.contextmanager
def upgrade(match: str = ".*", **options: Any) -> Iterator[Report]:
    """Inside, the batch norms of an unmodified model run through bnjax.

    Functions that were jitted before are traced again. What was compiled before (`jit(f).lower(...).compile()`) cannot
    be reached, nor can calls in other threads. The parameters, the running state and their names stay as they are.
    Contexts nest in any order, with one result.

    Args:
      match: a regular expression that is found (`re.search`) in the path of a norm.
      **options: attributes of `bnjax.linen.BatchNorm`, in the place of the model's own; hashable.

    Yields:
      A `Report`, which is filled while functions are traced.

    Raises:
      ValueError: no such attribute; on leaving, if modules were called and no norm was upgraded.

    >>> from flax import linen as nn
    >>> model = nn.BatchNorm(use_running_average=False)
    >>> x = jnp.array([[1.0, 0.0], [3.0, 4.0]])
    >>> variables = model.init(jax.random.key(0), x)
    >>> with upgrade(unbiased=True) as report:
    ...     y, state = model.apply(variables, x, mutable="batch_stats")
    >>> print(state["batch_stats"]["var"], report.done)
    [1.01 1.07] ('',)
    """
    check_match(match)
    known = {f.name for f in dataclasses.fields(BatchNorm)} - {"parent", "name"}
    entry = Upgrade(match, hashable_options(options, "`BatchNorm`", known))
    BatchNorm(**options)  # raises for values that have no meaning
    with _reported("upgrade", entry) as report:
        yield report


@contextlib.contextmanager
def swap(name: str, match: str = ".*", *, kind: str | None = None, **options: Any) -> Iterator[Report]:
    """Inside, the norms of an unmodified model are another norm.

    Parameters of equal name and shape are kept, and so is a mean and a variance. `model.init` inside of the context
    makes what is missing. The new norm has its own defaults; from the old one it has the axis, the dtypes, which
    parameters there are and, where both have a running state, `momentum`, `epsilon` and `axis_name`. Of groups there
    are as many as `num_groups` says, or the next smaller number that divides the channels.

    Args:
      name: of `bnjax.NORMS`; or "none", the identity.
      match: a regular expression that is found (`re.search`) in the path of a norm.
      kind: of the norms to swap, a name of `bnjax.NORMS`; by default all norms of activations.
      **options: attributes of the new norm; hashable.

    Yields:
      A `Report`, which is filled while functions are traced.

    Raises:
      ValueError: no such norm or attribute; a parameter that is missing; on leaving, if modules were called and no norm
        was swapped.

    >>> from flax import linen as nn
    >>> model = nn.LayerNorm()
    >>> x = jnp.array([[1.0, 7.0]])
    >>> variables = model.init(jax.random.key(0), x)
    >>> with swap("rms"):
    ...     print(model.apply(variables, x).round(1))
    [[0.2 1.4]]
    """
    check_match(match)
    target_named(name)
    constructor: Any = make_norm(name, **options)  # type: ignore[arg-type]
    hashed = hashable_options(options, repr(name), {f.name for f in dataclasses.fields(constructor.func)} | {*options})
    with _reported("swap", Swap(match, name, kind_named(kind), hashed)) as report:
        yield report


@contextlib.contextmanager
def freeze(match: str = ".*", *, use: bool = True, update: bool = False, parameters: bool = False) -> Iterator[Report]:
    """Inside, norms of an unmodified model are held; whatever other contexts say, what is frozen is frozen.

    A parameter without a gradient may still move: weight decay moves it. `frozen_labels` holds parameters.

    Args:
      match: a regular expression that is found (`re.search`) in the path of a norm.
      use: normalize by the running state in training, too.
      update: the running state steps in training.
      parameters: no gradient reaches the scale and the bias.

    Yields:
      A `Report`, which is filled while functions are traced.

    Raises:
      ValueError: on leaving, if modules were called and no norm was frozen.

    >>> from flax import linen as nn
    >>> model = nn.BatchNorm(use_running_average=False)
    >>> x = jnp.array([[1.0, 0.0], [3.0, 4.0]])
    >>> variables = model.init(jax.random.key(0), x)
    >>> with freeze():
    ...     print(model.apply(variables, x).round(2))  # the running mean is 0, the variance 1
    [[1. 0.]
     [3. 4.]]
    """
    with _reported("freeze", Freeze.checked(match, use, update, parameters)) as report:
        yield report


@contextlib.contextmanager
def _reported(verb: str, entry: Entry) -> Iterator[Report]:
    """Puts an entry in force; without an error inside, raises if modules were called and none was selected."""
    record = Record(entry)
    report = LiveReport(record)
    with in_force(record):
        yield report
    if record.classes:
        raise_if_nothing_done(
            verb, Report([*report, *record.unselected.values()]), "Check `match` against these paths."
        )
