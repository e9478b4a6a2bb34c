"""How a weight matrix is stored: a format rounds and packs it, and gives back what its bytes mean."""
