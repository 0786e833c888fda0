"""One batch over several devices, or over several steps."""
