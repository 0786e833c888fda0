"""Moments, their laws, and the rule that all norms share."""
