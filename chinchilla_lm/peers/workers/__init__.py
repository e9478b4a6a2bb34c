"""Stand-alone scripts, one a program, run by the interpreter of its environment."""
