"""How every command begins, reads its arguments, speaks and ends. Nothing here imports JAX."""
