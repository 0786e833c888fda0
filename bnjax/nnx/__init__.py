"""Normalization for `flax.nnx`: drop-in for Flax's modules, with more abilities."""

from bnjax.nnx._batch import BatchNorm as BatchNorm
