"""Sums over devices, and how arrays lie on them."""
