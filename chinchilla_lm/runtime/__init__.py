"""What runs a model and what it runs on: the machine, the clock, the session."""
