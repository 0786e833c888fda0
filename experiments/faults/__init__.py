"""Kills training processes, or damages files, and sees that no run is lost: `python -m experiments.faults`."""
