"""What programs cost: compiled for machines that need not be there, and timed on the one that is."""
