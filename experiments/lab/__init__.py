"""What studies share: small networks, and a training loop that is one program."""
