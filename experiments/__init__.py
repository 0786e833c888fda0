"""The training program: real experiments with bnjax, each described by one file in `configs/`."""

from experiments.cli.memory import is_command, keep_freed_memory

# Before any command imports JAX, and in no other process that imports this package.
if is_command(__name__):
    keep_freed_memory()
