"""The norms of a model: what a config chooses, made for every place where a model has one, for linen and nnx."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast

import jax
from flax import linen as nn
from flax import nnx, struct
from flax.core import FrozenDict
from jax import Array

import bnjax
from bnjax import linen as bnn
from bnjax import nnx as bnnx
from bnjax.family import fitting_groups
from experiments.config import NORMS, ModelConfig

ACTIVE = ("frn", "evonorm_b0", "evonorm_s0")  # have an activation of their own: no relu before or after them
OF_IMAGES = ("instance", "frn", "evonorm_b0", "evonorm_s0", "grn", "switchable")  # measure an image's height and width
OF_POSITIONS = (*OF_IMAGES, "example_weighted", "bcn")  # or all positions of a sequence together
OF_CHANNELS = ("positional", "scale", "pixel", "prms", "grn")  # measure the channels of a position
OF_SOME_WIDTHS = ("prms", "dbn", "iternorm")  # take a part of the channels, or groups of so many

Site = Literal["image", "tokens", "dense", "pixel"]
SITES: dict[int, Site] = {4: "image", 3: "tokens", 2: "dense"}  # by the rank of what is normalized
WORDS = {
    "image": "images (n, height, width, {0})",
    "tokens": "tokens (n, length, {0})",
    "dense": "features (n, {0})",
    "pixel": "images of one pixel (n, 1, 1, {0})",
}


@dataclasses.dataclass(frozen=True)
class NormChoice:
    """The norm that a model has at all of its sites.

    Attributes:
      name: of `bnjax.NORMS`, or "none".
      momentum: the fraction of the running statistics that is kept.
      groups: of channels, at most; a site has the largest number up to this one that divides its channels.
      ghost_size: examples in a slice, of `ghost`.
      batch: more arguments of every norm of the batch, such as `axis_name`.

    Raises:
      ValueError: no such norm, or one that needs more at its call than an input and a mask.

    >>> NormChoice("group", groups=8).groups
    8
    """

    name: str = "batch"
    momentum: float = 0.9
    groups: int = 32
    ghost_size: int = 16
    batch: Mapping[str, Any] = FrozenDict()

    def __post_init__(self) -> None:
        if self.name not in ("none", *NORMS):
            raise ValueError(f"`norm` must be one of {', '.join(('none', *NORMS))}, but it is {self.name!r}.")
        object.__setattr__(self, "batch", FrozenDict(self.batch))

    @property
    def active(self) -> bool:
        """Whether it has an activation of its own."""
        return self.name in ACTIVE


def choice_of(config: ModelConfig, batch: Mapping[str, Any]) -> NormChoice:
    """What a config says; `batch` are arguments of every norm of the batch."""
    return NormChoice(config.norm, config.momentum, config.groups, config.ghost_size, FrozenDict(batch))


def hands_out_moments(config: ModelConfig) -> bool:
    """Whether moments are all that the norm's running statistics are stepped with."""
    return not takes_state(config) or config.norm in ("batch", "ghost")


def takes_state(config: ModelConfig) -> bool:
    """Whether the norm keeps running statistics, and so takes `use_running_average`."""
    return config.norm != "none" and bnjax.NORMS[config.norm].takes_running_average


# At a site


def why_not(name: str, site: Site, features: int = 2) -> str:
    """Why a norm is no use at a site; nothing, where it is."""
    if site in ("dense", "pixel") and name in OF_IMAGES:
        return "it measures height and width, and there is nothing along them"
    if site == "tokens" and name in OF_POSITIONS:
        return "it measures the positions of a sequence together, so that each would see those behind it"
    if features == 1 and name in OF_CHANNELS:
        return "it measures the channels, and there is one"
    return ""


def check_site(choice: NormChoice, site: Site, features: int) -> None:
    """Raises where a norm would be no use.

    Raises:
      ValueError: says the norm, the site, and which norms can sit there.
    """
    if reason := why_not(choice.name, site, features):
        others = ", ".join(name for name in ("none", *NORMS) if not why_not(name, site, features))
        what = WORDS[site].format(features)
        raise ValueError(f"`norm` {choice.name!r} cannot sit at {what}: {reason}. Choose one of {others}.")


def norm_arguments(choice: NormChoice, site: Site, features: int, *, relu: bool = True) -> dict[str, Any]:
    """What the norm is made with at a site.

    Args:
      choice: which norm.
      site: what it normalizes.
      features: the number of channels.
      relu: whether a relu belongs to it; norms with an activation of their own leave that off where there is none.

    Raises:
      ValueError: it cannot sit there.
    """
    check_site(choice, site, features)
    name = choice.name
    if name == "none":
        return {}
    stateful = bnjax.NORMS[name].takes_running_average
    arguments: dict[str, Any] = {"momentum": choice.momentum} if stateful else {}
    if name in ("batch", "ghost"):
        arguments |= {"virtual_batch_size": choice.ghost_size} if name == "ghost" else {}
        arguments |= choice.batch
    elif stateful:
        arguments |= {k: v for k, v in choice.batch.items() if k == "axis_name"}
    if name in ("group", "evonorm_s0", "bcn"):
        arguments["num_groups"] = fitting_groups(choice.groups, features)
    if name == "group" and site == "tokens":
        arguments["reduction_axes"] = (-1,)  # each position by itself
    if name in ("layer", "rms") and site == "image":
        arguments["reduction_axes"] = (1, 2, 3)  # of the whole example, as Group Norm's paper compares
    if choice.active and not relu:
        arguments["use_threshold" if name == "frn" else "use_v"] = False
    return arguments


def takes(choice: NormChoice, attribute: str) -> bool:
    """Whether the class of the norm has an attribute."""
    made: Any = bnn.make_norm(cast(Any, choice.name))
    return attribute in {field.name for field in dataclasses.fields(made.func)}


def needs_bias(choice: NormChoice) -> bool:
    """Whether a layer before the norm needs a bias: where the norm adds one, it would be redundant."""
    return not takes(choice, "use_bias")


def linen_norm(
    choice: NormChoice, site: Site, features: int, *, relu: bool = True, **attributes: Any
) -> Callable[..., Array]:
    """The norm as a linen module; its arguments are those of `norm_arguments` and attributes of the module."""
    arguments = norm_arguments(choice, site, features, relu=relu)
    return bnn.make_norm(cast(Any, choice.name), **arguments, **_known(choice, attributes))()


def nnx_norm(
    choice: NormChoice, site: Site, features: int, *, rngs: nnx.Rngs, relu: bool = True, **attributes: Any
) -> Callable[..., Array]:
    """The norm as an nnx module; see `linen_norm`."""
    arguments = norm_arguments(choice, site, features, relu=relu)
    return bnnx.make_norm(cast(Any, choice.name), features, **arguments, **_known(choice, attributes), rngs=rngs)


def _known(choice: NormChoice, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Those that the norm has; "none" has none of them but its name."""
    return {name: value for name, value in attributes.items() if takes(choice, name)}


def no_norm(x: Array, **_: Any) -> Array:
    """What stands where a norm is left out."""
    return x


# At the call


@struct.dataclass
class Call:
    """How all norms of a model are called. It is a tree, of which the mask alone is a leaf.

    Attributes:
      train: measure the batch, and not use the running statistics.
      mask: which examples count (n,), or which positions (n, length); all, where it is None.
      active: whether the norms have an activation of their own.
    """

    train: bool = struct.field(pytree_node=False)
    mask: Array | None = None
    active: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, norm: Callable[..., Array], x: Array, **more: Any) -> Array:
        """The output of a norm, of Flax or bnjax."""
        if self.mask is not None:
            more["mask"] = self.mask.reshape(self.mask.shape + (1,) * (x.ndim - self.mask.ndim))
        if hasattr(norm, "use_running_average"):
            more["use_running_average"] = not self.train
        return norm(x, **more)

    def relu(self, norm: Callable[..., Array], x: Array, activation: Callable[[Array], Array] = jax.nn.relu) -> Array:
        """The output of a norm and a relu, or another activation; a norm with one of its own goes without it."""
        y = self(norm, x)
        return y if self.active else activation(y)

    def dropout(self, dropout: Callable[..., Array], x: Array) -> Array:
        """The output of a dropout."""
        return dropout(x, deterministic=not self.train)


class Norms(NamedTuple):
    """Makes and calls the norms of a linen model, inside of a method with `nn.compact`: `norms(x)`, `norms.relu(x)`.

    Attributes:
      choice: which norm.
      call: how it is called.
      dtype: of the outputs; that of the inputs and parameters by default.
    """

    choice: NormChoice
    call: Call
    dtype: Any = None

    def __call__(self, x: Array) -> Array:
        """`x` normalized."""
        return self.call(self._made(x, False), x)

    def relu(self, x: Array, activation: Callable[[Array], Array] = jax.nn.relu) -> Array:
        """`x` normalized, through a relu or another activation."""
        return self.call.relu(self._made(x, True), x, activation)

    def dropout(self, rate: float, x: Array) -> Array:
        """`x` with numbers dropped, while it is trained."""
        return nn.Dropout(rate, deterministic=not self.call.train)(x) if rate else x

    @property
    def use_bias(self) -> bool:
        """Whether a convolution before a norm needs a bias, since the norm adds none."""
        return needs_bias(self.choice)

    def _made(self, x: Array, relu: bool) -> Callable[..., Array]:
        site = SITES[x.ndim]
        if site == "image" and x.shape[1] * x.shape[2] == 1:
            check_site(self.choice, "pixel", x.shape[-1])
        return linen_norm(self.choice, site, x.shape[-1], relu=relu, dtype=self.dtype)


def norms_of(choice: NormChoice, train: bool, mask: Array | None, dtype: Any = None) -> Norms:
    """The norms of one call of a linen model."""
    return Norms(choice, Call(train, mask, choice.active), dtype)
