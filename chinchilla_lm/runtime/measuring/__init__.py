"""What the machine can do, and how fast models run on it, side by side."""
