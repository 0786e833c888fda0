"""Training, the benchmark and the tools. They say little of a release of JAX."""
