"""Studies: what a page of the guide says in figures, each a command of its own."""
