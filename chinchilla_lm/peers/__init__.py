"""Other programs that run the same model, each in an environment and a process of its own, timed in turn."""
