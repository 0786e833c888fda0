"""A network of a function, or a class, that makes a Flax module: one of the zoo or of the user's own."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.errors import FlaxError, ModifyScopeVariableError

from experiments.cli.errors import UserError, short
from experiments.config import ModelConfig
from experiments.models.network import Job, Network, linen_network, nnx_network
from experiments.models.norms import choice_of, hands_out_moments

ERRORS = (ValueError, TypeError, AttributeError, KeyError, FlaxError)  # of a model that does not fit


def built(build: Callable[..., Any], config: ModelConfig, job: Job, batch: Mapping[str, Any]) -> Network:
    """The network of what `build` makes, checked: that it takes the inputs, and has the outputs, of the job.

    `build` is called with those of these keywords that it has: `norm`, and what `offers` names. Where it has `rngs`, it
    makes an nnx module, else one of linen. `batch` are arguments of every norm of the batch.

    Raises:
      UserError: something that it needs and nobody gives, or a model that does not fit.
    """
    name = f"config.model.name={config.name}"
    takes, offered = _parameters(build, name), {"norm": None, "rngs": None, **offers(config, job)}
    for option in ("dropout", "size"):
        if option in offered and option not in takes:
            raise UserError(f"`{name}` takes no `{option}`; leave `config.model.{option}` out.")
    if config.dtype == "bfloat16" and "dtype" not in takes:
        raise UserError(
            f"`{name}` takes no `dtype`, so it does not compute in bfloat16; leave `config.model.dtype` out."
        )
    if missing := [n for n, p in takes.items() if p.default is p.empty and n not in offered]:
        given = ", ".join(f"`{n}`" for n in offered)
        raise UserError(f"`{name}` needs `{missing[0]}`, which is not among what it can be given: {given}.")

    def network(batch: Mapping[str, Any]) -> Network:
        keywords = {**offered, "norm": choice_of(config, batch)}
        return _network(build, {n: v for n, v in keywords.items() if n in takes and n != "rngs"}, job, "rngs" in takes)

    try:
        stats = _check(network({}), name, job, config)
        made = network(batch)
    except ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(_why(error, name, config, job)) from error
    if stats and batch and "norm" not in takes:
        raise UserError(
            f"`{name}` has running statistics, but takes no `norm` that knows of the other devices; give it one, or "
            "write `--config.parallel.layout=jit --config.parallel.sync=global`."
        )
    return made


def offers(config: ModelConfig, job: Job) -> dict[str, Any]:
    """What there is to say to a builder, but for the norm."""
    said = {n: v for n, v in (("dropout", config.dropout), ("size", config.size)) if v not in (None, "")}
    one = next(iter(jax.tree.leaves(job.inputs))).shape[1:] or (1,)
    facts = {"classes": job.classes, "vocabulary": job.classes, "inputs": math.prod(one), "channels": one[-1]}
    return {**job.options, **facts, "length": one[0], "dtype": jnp.dtype(config.dtype), **said}


def _why(error: Exception, name: str, config: ModelConfig, job: Job) -> str:
    said = " ".join(str(error).split())[:1000]  # of a norm that cannot sit there, with all that can
    if isinstance(error, ModifyScopeVariableError) and "batch_stats" in said:
        return (
            f"`{name}` has a batch norm that does not hand out what it measures, as Flax's. Use that of `bnjax.linen` "
            "or `bnjax.nnx`, which take the same arguments, or the `norm` that it can be given."
        )
    return f"`{name}` with `config.model.norm={config.norm}` does not take {described(job.inputs)}: {said}"


def described(inputs: Any) -> str:
    """What a model is given, in words."""
    if isinstance(inputs, Mapping):
        return " and ".join(f"`{name}` {_axes(t)}" for name, t in inputs.items())
    return f"inputs {_axes(inputs)}"


def _axes(t: Any) -> str:
    return f"({', '.join(['n', *map(str, t.shape[1:])])}) of {jnp.dtype(t.dtype).name}"


def _parameters(build: Any, name: str) -> Mapping[str, inspect.Parameter]:
    """The parameters that can be given by name; of a linen module those that Flax adds are left out."""
    if not callable(build):
        raise UserError(f"`{name}` must be a Flax module, or a function that makes one, but it is {short(build)}.")
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    of = build.__init__ if inspect.isclass(build) else build  # type: ignore[misc]
    hidden = ("self", "parent", "name") if inspect.isclass(build) else ()
    return {n: p for n, p in inspect.signature(of).parameters.items() if p.kind in kinds and n not in hidden}


def _network(build: Callable[..., Any], keywords: Mapping[str, Any], job: Job, is_nnx: bool) -> Network:
    if is_nnx:

        def make(rngs: nnx.Rngs) -> Any:
            return build(**keywords, rngs=rngs)

        return nnx_network(make, takes_mask=_takes_mask(nnx.eval_shape(lambda: make(nnx.Rngs(0)))), random=True)
    model = build(**keywords)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"it must make a `flax.linen.Module`, or take `rngs` and make a `flax.nnx.Module`, but made {short(model)}."
        )
    return linen_network(model, job, takes_mask=_takes_mask(model), random=True)


def _takes_mask(model: Any) -> bool:
    parameters = inspect.signature(type(model).__call__).parameters
    if "train" not in parameters:
        raise TypeError("its `__call__` must take `train`, and `mask` if it can: `model(x, train=True, mask=mask)`.")
    return "mask" in parameters


def _check(network: Network, name: str, job: Job, config: ModelConfig) -> bool:
    """As far as shapes tell: the outputs, and statistics that are measured by parts. Returns whether there are any."""
    n = config.ghost_size if config.norm == "ghost" else 2
    some = jax.tree.map(lambda t: jax.ShapeDtypeStruct((n, *t.shape[1:]), t.dtype), (job.inputs, job.mask))

    def called(key: Any, x: Any, mask: Any) -> Any:
        params, stats = network.init(key)
        outputs = network.apply(params, stats, x, train=False, mask=mask)[0]
        measured = network.measure(params, stats, x, mask=mask)[1] if hands_out_moments(config) else {}
        return outputs, stats, measured

    outputs, stats, moments = jax.eval_shape(called, jax.random.key(0), *some)
    if job.outputs is not None and outputs.shape[1:] != job.outputs[1:]:
        raise UserError(
            f"`{name}` must return outputs {_axes(jax.ShapeDtypeStruct(job.outputs, outputs.dtype))} for "
            f"{described(job.inputs)}, but they are {_axes(outputs)}."
        )
    if hands_out_moments(config) and jax.tree.leaves(stats) and not jax.tree.leaves(moments):
        raise ModifyScopeVariableError("batch_stats", name, "")  # as Flax says it where it can
    return bool(jax.tree.leaves(stats))
