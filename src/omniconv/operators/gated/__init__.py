"""Gated operators and hybrids of convolution and attention."""
