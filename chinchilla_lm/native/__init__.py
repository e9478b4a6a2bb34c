"""The C++ engine: kernels for each instruction set, the executor, the binding. It knows no model names."""
