"""The classes for linen and nnx, and Flax's beside them."""
