"""What the linen and the nnx modules share."""
