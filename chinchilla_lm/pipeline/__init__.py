"""The main job and its stages, as the command line and the Python API both call them."""
