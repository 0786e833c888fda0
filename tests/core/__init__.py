"""The functions, their derivatives and their rounding."""
