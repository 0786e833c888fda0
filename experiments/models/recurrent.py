"""LSTM and GRU over an image, row by row or pixel by pixel (as in arXiv 1603.09025), for linen.

The norm is one of three: none, layer norm (arXiv 1607.06450), or, of the LSTM, batch norm with statistics for each time
step. All images must have as many steps as those that the model is initialized with.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from bnjax import linen as bnn
from experiments.models.norms import NormChoice
from experiments.models.sizes import Sizes, sized

SIZES: Sizes = {
    "lstm": {"cell": "lstm", "features": 100, "by": "pixels"},
    "gru": {"cell": "gru", "features": 100, "by": "pixels"},
    "small": {"cell": "lstm", "features": 32, "by": "rows"},
    "small_gru": {"cell": "gru", "features": 32, "by": "rows"},
    "small_pixels": {"cell": "lstm", "features": 32, "by": "pixels"},
    "small_gru_pixels": {"cell": "gru", "features": 32, "by": "pixels"},
}
CELLS: dict[tuple[str, str], Any] = {
    ("lstm", "none"): nn.LSTMCell,
    ("lstm", "layer"): bnn.LayerNormLSTMCell,
    ("lstm", "batch"): bnn.BatchNormLSTMCell,
    ("gru", "none"): nn.GRUCell,
    ("gru", "layer"): bnn.LayerNormGRUCell,
}


class Recurrent(nn.Module):
    """Logits (n, classes) of images (n, height, width, channels); `mask` (n,) says which examples count.

    Attributes:
      norm: in the cell.
      cell: which one.
      features: of its output, the last one of which goes to a dense layer.
      by: what a time step sees, a row of the image or a pixel.
      classes: the number of logits.
      dtype: of the computation; that of inputs and parameters by default.

    Raises:
      ValueError: a norm that the cell has not, or an argument of norms of the batch that it does not take.
    """

    norm: NormChoice
    cell: Literal["lstm", "gru"] = "lstm"
    features: int = 100
    by: Literal["rows", "pixels"] = "rows"
    classes: int = 10
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: Array, train: bool = True, mask: Array | None = None) -> Array:
        n, height, width, channels = inputs.shape
        shape = (n, height, width * channels) if self.by == "rows" else (n, height * width, channels)
        x = inputs.reshape(shape).astype(self.dtype or inputs.dtype)
        cell = self.made(train)
        lengths = None if mask is None else jnp.where(mask, shape[1], 0)
        more = {"lengths": lengths} if isinstance(cell, bnn.BatchNormLSTMCell) else {}
        carry = cell.initialize_carry(jax.random.key(0), (n, x.shape[-1]), **more)
        # Zeros that are made of the input: under `shard_map` a loop's carry must differ by device from its start.
        zero = (jnp.isnan(x[:, 0, :1]) & False).astype(x.dtype)
        carry = jax.tree.map(lambda t: zero + t.astype(x.dtype) if t.ndim > 1 else t, carry)
        scanned: Any = nn.RNN(cell, variable_axes={"batch_stats": 0, "batch_moments": 0}, name="rnn")
        return nn.Dense(self.classes, dtype=self.dtype)(scanned(x, initial_carry=carry)[:, -1])

    def made(self, train: bool) -> Any:
        """The cell, of one step."""
        kind = self.cell, self.norm.name
        if kind not in CELLS:
            others = ", ".join(name for cell, name in CELLS if cell == self.cell)
            raise ValueError(
                f"`norm` {self.norm.name!r} cannot sit in a cell {self.cell!r}, which has norms of its own. "
                f"Choose one of {others}."
            )
        if self.norm.name != "batch":
            return CELLS[kind](self.features, dtype=self.dtype)
        batch = dict(self.norm.batch)
        if len(batch.get("axis_index_groups") or ()) <= 1:  # all devices together
            batch.pop("axis_index_groups", None)
        if unknown := sorted(set(batch) - {"axis_name"}):
            raise ValueError(
                f"A batch norm in a cell measures all examples of a step together, but `batch` has `{unknown[0]}`."
            )
        arguments = {"use_running_average": not train, "momentum": self.norm.momentum, **batch}
        return CELLS[kind](self.features, dtype=self.dtype, **arguments)


def build(
    *, norm: NormChoice, size: str = "small", classes: int | None = None, dtype: Any = None, **sizes: Any
) -> Recurrent:
    """A recurrent network for linen.

    Args:
      norm: none, layer, or, of an LSTM, batch.
      size: of `SIZES`.
      classes: the number of logits; that of `size` by default.
      dtype: of the computation; that of inputs and parameters by default.
      **sizes: attributes of `Recurrent` in the place of those of `size`.
    """
    return Recurrent(norm, dtype=dtype, **sized(SIZES, size, {"classes": classes, **sizes}))
