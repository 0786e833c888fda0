"""What each compiler wants written differently."""
