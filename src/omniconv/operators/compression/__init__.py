"""Convolutions whose kernel has fewer parameters than entries by a tensor decomposition."""
