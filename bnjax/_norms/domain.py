"""Batch normalization with statistics for each domain: of the data, or of clean and adversarial examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from bnjax import _checks as checks
from bnjax._collectives.psum import AxisName
from bnjax._core.moments import Moments, all_reduce, ema, reduce
from bnjax._core.normalize import normalize_prepared
from bnjax._core.prepare import Arguments, Prepared, parameter
from bnjax._norms.measure import inf_var_where_empty, per_example, prepare_examples
from bnjax._norms.spec import Measured, Spec, Sync, Variable


def domain_batch_norm(
    x: ArrayLike,
    running: Moments,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    domain: ArrayLike | str | None = None,
    domains: Sequence[str] = ("main", "auxiliary"),
    axis: checks.Axes = -1,
    momentum: ArrayLike = 0.99,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    zero_masked: bool = False,
    axis_name: AxisName | None = None,
    train: bool = True,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """Batch normalization in which each domain has statistics of its own: the output, and the new running state.

    Equivalent, for each domain d, to `batch_norm(x[domain == d], running[d], scale, bias)`. With one scale and bias for
    all it is domain-specific batch norm, with those of each domain the auxiliary batch norm of AdvProp.

    Args:
      x: real, examples first. Statistics are float32 or wider.
      running: the state, with a leading axis of domains before that of the features.
      scale: of the features' shape, shared; with a leading axis of domains; or of the rank of `x` and broadcastable to
        it (per example). The shape decides; with as many examples as domains, it is per domain.
      bias: likewise.
      domain: the index in `domains` of each example, or one index or name for all; what is traced is not checked.
        `None`: in training contiguous parts of this device's batch, one a domain and as equal as can be; at evaluation
        the first domain.
      domains: their names.
      axis: the feature axes, not the first.
      momentum: the fraction of the running state that is kept (1 - PyTorch's); a domain without examples keeps it all.
      epsilon: added to the variance.
      where: broadcastable to `x`, non-zero is valid. What is masked out counts for nothing in the statistics.
      zero_masked: make zero what is masked out, in the result and in all gradients, whatever stands there.
      axis_name: a name or names of `pmap`, `shard_map` or `vmap` to measure over too.
      train: without, by the running state, which comes back as it is.
      dtype: of the output; that of `x` by default.

    Raises:
      ValueError: an argument that does not fit, by its name.

    References:
      Chang et al., Domain-Specific Batch Normalization for Unsupervised Domain Adaptation, 2019 (arXiv
      1906.03950). Xie et al., Adversarial Examples Improve Image Recognition, 2020 (arXiv 1911.09665). Li et al.,
      Revisiting Batch Normalization, 2016 (arXiv 1603.04779).

    >>> running = Moments(jnp.zeros(()), jnp.zeros((2, 1)), jnp.ones((2, 1)))
    >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
    >>> y, running = domain_batch_norm(x, running, domain=jnp.array([0, 0, 1, 1]), momentum=0.5)
    >>> print(y.ravel().round(3), running.mean.ravel())
    [-1.  1. -1.  1.] [ 1. 10.]
    """
    ops = prepare_examples(x, Arguments(None, None, axis, epsilon, where, zero_masked, dtype=dtype))
    shape = ops.x.shape
    index = _index(domain, domains, shape[0], train)
    _check_state(running, len(domains), [shape[a] for a in ops.features])
    m, state = running, running
    if train:
        m = _by_domain(ops, index, len(domains), axis_name)
        m = Moments(*(t.reshape((len(domains), *jnp.shape(running.mean)[1:])) for t in (m.count, m.mean, m.var)))
        state, m = lax.stop_gradient(ema(running, m, momentum)), inf_var_where_empty(m)

    def of_example(t: ArrayLike) -> Array:
        places = [n if a in (0, *ops.features) else 1 for a, n in enumerate(shape)]
        return jnp.asarray(t)[index].reshape(places)

    def own(t: ArrayLike | None, name: str) -> Array | None:
        if t is not None and jnp.shape(t) == jnp.shape(running.mean):
            t = of_example(t)
        try:
            return parameter(t, name, ops)
        except ValueError as error:
            raise ValueError(f"{error} One for each domain has the shape {jnp.shape(running.mean)}.") from None

    mine = Moments(jnp.ones(()), of_example(m.mean), of_example(m.var))
    affine = ops.affine._replace(scale=own(scale, "scale"), bias=own(bias, "bias"))
    return normalize_prepared(dataclasses.replace(ops, affine=affine), mine), state


def _by_domain(ops: Prepared, index: Array, domains: int, axis_name: AxisName | None) -> Moments:
    """The moments of the examples of each domain, on all devices."""
    own = per_example(ops)
    member = jax.nn.one_hot(index, domains, axis=0, dtype=own.count.dtype)
    member = member.reshape((domains, -1) + (1,) * (own.count.ndim - 1))
    m = reduce(Moments(member * own.count[None], own.mean[None], own.var[None]), 1)
    return m if axis_name is None else all_reduce(m, checks.hashable_name(axis_name))


def _index(domain: ArrayLike | str | None, domains: Sequence[str], examples: int, train: bool) -> Array:
    """The domain of each example."""
    if domain is None:
        return jnp.arange(examples) * len(domains) // examples if train else jnp.zeros(examples, int)
    if isinstance(domain, str):
        checks.choice(domain, "domain", tuple(domains))
        domain = list(domains).index(domain)
    known, domain = checks.concrete(domain), jnp.asarray(domain)
    if domain.shape not in ((), (examples,)) or not jnp.issubdtype(domain.dtype, jnp.integer):
        raise ValueError(
            f"`domain` must be a name, an integer or an integer for each of {examples} examples, but it is of shape "
            f"{domain.shape} and dtype {domain.dtype}."
        )
    if known is not None and known.size and not 0 <= known.min() <= known.max() < len(domains):
        raise ValueError(f"`domain` must be from 0 to {len(domains) - 1}, but it is {known}.")
    return jnp.broadcast_to(domain, (examples,))


def _check_state(running: Moments, domains: int, features: Sequence[int]) -> None:
    checks.float_state(running, "running", "Moments", "mean", "var")
    want = (domains, *features)
    for name in ("mean", "var"):
        if (shape := jnp.shape(getattr(running, name))) != want:
            raise ValueError(f"`running.{name}` must have the shape {want}, domains and features, but it has {shape}.")


def _by_domain_and_feature(value: float) -> Variable:
    return Variable(
        lambda features, options: value, lambda features, options: (len(options["domains"]), *features), each="domain"
    )


DOMAIN_BATCH_NORM = Spec(
    name="domain",
    function=domain_batch_norm,
    module="DomainBatchNorm",
    statistics=(Measured("NHW", "each domain"),),
    sync=Sync.YES,
    variables={"mean": _by_domain_and_feature(0.0), "var": _by_domain_and_feature(1.0)},
    paper="Chang et al. 2019, arXiv 1906.03950",
    use="data from several sources; adaptation to a new one",
)
SPLIT_BATCH_NORM = Spec(
    name="split",
    function=domain_batch_norm,
    module="SplitBatchNorm",
    statistics=(Measured("NHW", "each part of the batch"),),
    sync=Sync.YES,
    parameters={"scale": _by_domain_and_feature(1.0), "bias": _by_domain_and_feature(0.0)},
    variables=DOMAIN_BATCH_NORM.variables,
    paper="Xie et al. 2020 (AdvProp), arXiv 1911.09665",
    use="clean and adversarial (or augmented) examples in one batch",
)
SPECS = (DOMAIN_BATCH_NORM, SPLIT_BATCH_NORM)
