"""What is known of a norm beside its function: one record, a `Spec`, which stands at the end of the function's file.

All else comes from it: the registry, what the modules of both APIs keep and call, `make_norm`, the lists of names and
the table in docs/norms/index.md, and the tests that every norm must pass.
"""

import dataclasses
import enum
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bnjax._core.moments import Moments

Shape = tuple[int, ...]
Options = Mapping[str, Any]


class Measured(NamedTuple):
    """What one statistic is taken over.

    Attributes:
      axes: some of `"NHWC"`, those of an input; of weights some of `"HWIO"`, those of a kernel.
      part: what it is a statistic of, where it is not all along these axes.
    """

    axes: str
    part: str = ""

    def __str__(self) -> str:
        return ", ".join(self.axes) + (f" ({self.part})" if self.part else "")


class Variable(NamedTuple):
    """A parameter, or a part of the state.

    Attributes:
      start: what it starts from, given the features' shape and the options; `None`: at random.
      shape: its shape, given the same.
      each: of what there is one, beside one for each feature.
    """

    start: Callable[[Shape, Options], ArrayLike] | None
    shape: Callable[[Shape, Options], Shape]
    each: str = ""


def constant(value: float) -> Variable:
    """One number a feature."""
    return Variable(lambda features, options: value, lambda features, options: features)


def number(start: float | Callable[[Shape, Options], ArrayLike]) -> Variable:
    """One number."""
    return Variable(start if callable(start) else lambda features, options: start, lambda features, options: ())


ZEROS, ONES = constant(0.0), constant(1.0)
AFFINE = {"scale": ONES, "bias": ZEROS}
RUNNING = {"mean": ZEROS, "var": ONES}


class Ability(enum.Enum):
    """Whether a norm can do something, and why. It is true where it can.

    Attributes:
      able: whether it can.
      reason: why not, or how.
    """

    def __init__(self, able: bool, reason: str = ""):
        self.able = able
        self.reason = reason

    def __bool__(self) -> bool:
        return self.able

    def __str__(self) -> str:
        if self.able:
            return f"yes, {self.reason}" if self.reason else "yes"
        return f"no: {self.reason}"


class Sync(Ability):
    """Whether statistics are measured over devices, too."""

    YES = (True,)
    BY_EXAMPLE = False, "each example by itself"
    BY_SLICE = False, "slices stay on their device; the state is pooled"
    POINTWISE = False, "element by element"
    WEIGHTS = False, "weights, not activations"


class Mask(Ability):
    """Whether masks are taken."""

    YES = (True,)
    ONE_FOR_CHANNELS = True, "one for all channels"
    POINTWISE = False, "element by element"
    WEIGHTS = False, "weights, not activations"


class Gradient(Ability):
    """Whether the derivative is that of the formula."""

    YES = (True,)
    CONSTANT_CORRECTION = False, "the correction is a constant, as in the paper"
    CONSTANT_VECTORS = False, "u and v are constants, as in the paper"


def moments_of(mean: Array, var: Array) -> Moments:
    """The usual running state, of its variables."""
    return Moments(jnp.zeros(()), mean, var)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Spec:
    """A norm.

    Attributes:
      name: in `bnjax.NORMS`.
      function: of `bnjax` or `bnjax.family`.
      module: the name of the class in `bnjax.linen` and `bnjax.nnx`.
      statistics: what is measured, each statistic with its axes.
      sync: whether measured over devices too; an enum with a `reason`, true or false, as the next two.
      mask: whether masks are taken.
      gradient: whether the derivative is that of the formula.
      paper: where from, with its arXiv number.
      use: what for.
      arguments: of the module, other than its defaults.
      parameters: what the module learns.
      variables: what the module keeps between calls; `state` in words.
      pack: the running state that the function takes, of its variables.
      called: what the module calls, where that is not `function`.
      attributes: for the classes of Flax: arguments of the function, and what the class calls them.
    """

    name: str
    function: Callable[..., Any]
    module: str
    statistics: tuple[Measured, ...]
    sync: Sync = Sync.BY_EXAMPLE
    mask: Mask = Mask.YES
    gradient: Gradient = Gradient.YES
    paper: str
    use: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parameters: Mapping[str, Variable] = dataclasses.field(default_factory=lambda: AFFINE)
    variables: Mapping[str, Variable] = dataclasses.field(default_factory=dict)
    pack: Callable[..., Any] = moments_of
    called: Callable[..., Any] | None = None
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def axes(self) -> str:
        """The axes of the statistics, in words."""
        return "; ".join(map(str, self.statistics)) or "none"

    @property
    def state(self) -> str:
        """What is kept between calls, in words."""
        each = {f", one for each {v.each}" for v in self.variables.values() if v.each}
        return (", ".join(self.variables) or "none") + "".join(each)

    @property
    def takes_running_average(self) -> bool:
        """Whether `use_running_average` decides anything: whether the function takes a running state."""
        return "running" in inspect.signature(self.function).parameters

    @property
    def wraps(self) -> bool:
        """Whether the module wraps a layer, whose weights it normalizes."""
        return self.mask is Mask.WEIGHTS

    @property
    def defaults(self) -> dict[str, Any]:
        """The attributes of the module that are arguments of the function, and their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        by_call = {"where", "train", "dtype", "domain"}
        own = {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY and p.name not in by_call}
        return own if self.wraps else own | {"zero_masked": False}  # modules take a mask, whatever the function does

    @property
    def centred(self) -> bool:
        """Whether a mean is subtracted; about which number is measured is an argument then."""
        return "pivot" in inspect.signature(self.function).parameters
