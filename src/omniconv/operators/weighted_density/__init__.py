"""Convolutions whose kernel is scaled by a density over distance."""
