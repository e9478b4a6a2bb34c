"""Surgery on the chain, and what can be computed once instead of at every step."""
