"""One transformer, the families that fill it, and the files it comes from."""
