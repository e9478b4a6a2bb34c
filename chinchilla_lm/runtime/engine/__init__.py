"""Programs of packed weights: made, kept in files, and run by the C++ engine."""
