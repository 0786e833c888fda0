"""Weights from PyTorch and Keras to Flax, and back: what linen and nnx share."""
