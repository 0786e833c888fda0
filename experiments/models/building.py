"""A network of a function, or a class, that makes a Flax module: one of the zoo or of the user's own."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.errors import FlaxError

from experiments.cli.errors import UserError, short, shown
from experiments.config import ModelConfig
from experiments.models.network import Job, Network, linen_network, nnx_network


def built(build: Callable[..., Any], config: ModelConfig, job: Job, norm: Any) -> Network:
    """The network that `build` makes, checked: that it takes the inputs, and has the outputs, of the job.

    `build` is called with those of these keywords that it takes: `norm`, `classes`, `dropout`, `size`, and the options
    of the task. Where it takes `rngs`, it makes an nnx module, else one of linen.

    Raises:
      UserError: something that it needs and nobody gives, or a model that does not fit.
    """
    name = f"config.model.name={config.name}"
    takes = _parameters(build)
    offered = {**job.options, "norm": norm, "classes": job.classes, **_said(config, takes)}
    keywords = {n: value for n, value in offered.items() if n in takes}
    if missing := [n for n, p in takes.items() if p.default is p.empty and n not in (*keywords, "rngs")]:
        raise UserError(
            f"`{name}` needs `{missing[0]}`, which is not among what it can be given: "
            f"{', '.join(f'`{n}`' for n in offered)}; give it a default."
        )
    try:
        network = _network(build, keywords, job, api="nnx" if "rngs" in takes else "linen")
        _check(network, name, job)
    except (ValueError, TypeError, AttributeError, FlaxError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"`{name}` with `config.model.norm={config.norm}` does not take {described(job.inputs)}: "
            f"{shown(str(error))}"
        ) from error
    return network


def described(inputs: Any) -> str:
    """What a model is given, in words."""
    if isinstance(inputs, Mapping):
        return " and ".join(f"`{name}` {_axes(t)}" for name, t in inputs.items())
    return f"inputs {_axes(inputs)}"


def _axes(t: Any) -> str:
    return f"{('n', *t.shape[1:])} of {jnp.dtype(t.dtype).name}".replace("'", "")


def _parameters(f: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters that can be given by name; of a linen module those that Flax adds are left out."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    of = f.__init__ if inspect.isclass(f) else f  # type: ignore[misc]
    hidden = ("self", "parent", "name") if inspect.isclass(f) else ()
    return {n: p for n, p in inspect.signature(of).parameters.items() if p.kind in kinds and n not in hidden}


def _said(config: ModelConfig, takes: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the model, where it says something."""
    said = {n: v for n, v in (("dropout", config.dropout), ("size", config.size)) if v not in (None, "")}
    for option in said:
        if option not in takes:
            raise UserError(
                f"`config.model.name={config.name}` takes no `{option}`; leave out `config.model.{option}`."
            )
    return said


def _network(build: Callable[..., Any], keywords: Mapping[str, Any], job: Job, api: str) -> Network:
    if api == "nnx":
        like = nnx.eval_shape(lambda: build(**keywords, rngs=nnx.Rngs(0)))
        return nnx_network(lambda rngs: build(**keywords, rngs=rngs), takes_mask=_takes_mask(like), random=True)
    model = build(**keywords)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"it must make a `flax.linen.Module`, or take `rngs` and make a `flax.nnx.Module`, but made {short(model)}."
        )
    return linen_network(model, job, takes_mask=_takes_mask(model), random=True)


def _takes_mask(model: Any) -> bool:
    parameters = inspect.signature(type(model).__call__).parameters
    if "train" not in parameters:
        raise TypeError(
            "its `__call__` must take `train`, and `mask` where rows can be padding: `model(x, train=True, mask=mask)`."
        )
    return "mask" in parameters


def _check(network: Network, name: str, job: Job) -> None:
    """As far as shapes tell: outputs of the right shape, and statistics that can be measured by parts."""

    def outputs(key: Any) -> Any:
        x, mask = (jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), tree) for tree in (job.inputs, job.mask))
        return network.apply(*network.init(key), x, train=False, mask=mask)[0]

    found = jax.eval_shape(outputs, jax.random.key(0))
    if job.outputs is not None and found.shape != job.outputs:
        raise UserError(
            f"`{name}` must return outputs {_axes(jax.ShapeDtypeStruct(job.outputs, found.dtype))} for "
            f"{described(job.inputs)}, but they are {_axes(found)}."
        )
