"""What is wrong with the norms of a model: facts of each norm, rules that judge them, and what is said."""
