"""Normalization for `flax.linen`: drop-in for Flax's modules, with more abilities."""

from bnjax.linen._batch import BatchNorm as BatchNorm
