"""Packed matrices on a GPU: codes stay codes in its memory, and Triton kernels multiply them."""
