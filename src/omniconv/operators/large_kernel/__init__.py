"""Convolutions with large kernels, cheaper than dense ones."""
