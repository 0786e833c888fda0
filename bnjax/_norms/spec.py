"""What is known of a norm beside its function: one record, and what it can do, with the reason."""

import enum
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


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


class Norm(NamedTuple):
    """A row of the table of norms.

    Attributes:
      function: of `bnjax`.
      module: the name of the class in `bnjax.linen` and `bnjax.nnx`.
      axes: what is measured, of an input (N, H, W, C).
      state: what is kept between calls. Modules that keep something of activations take `use_running_average`.
      sync: whether measured over devices too; an enum with a `reason`, true or false, as the next two.
      mask: whether masks are taken.
      gradient: whether the derivative is that of the formula.
      paper: where from, with its arXiv number.
      use: what for.
      arguments: of the module, other than its defaults.
    """

    function: Callable[..., Any]
    module: str
    axes: str
    state: str
    sync: Sync
    mask: Mask
    gradient: Gradient
    paper: str
    use: str
    arguments: Mapping[str, Any] = {}

    @property
    def takes_running_average(self) -> bool:
        """Whether the call takes `use_running_average`: whether the function takes a running state."""
        return "running" in inspect.signature(self.function).parameters

    @property
    def wraps(self) -> bool:
        """Whether the module wraps a layer, whose weights it normalizes."""
        return self.mask is Mask.WEIGHTS
