"""What a training step sends over 4, 64 and 256 devices, compiled and not run: `python -m experiments.scale`."""
