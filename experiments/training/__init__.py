"""Training: one step, spread over devices and processes, in a run that can be interrupted."""
