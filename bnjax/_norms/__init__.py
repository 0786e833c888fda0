"""The norms: one function each, and its Spec."""
