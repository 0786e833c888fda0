"""What holds for the source itself: who imports what, and what a type checker says."""
