"""The training program: real experiments with bnjax, each described by one file in `configs/`."""
