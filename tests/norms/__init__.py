"""All norms: each by its formula, in both APIs."""
