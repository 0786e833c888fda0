"""What PyTorch computed, and the script that asked it."""
