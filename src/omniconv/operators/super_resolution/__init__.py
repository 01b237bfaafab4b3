"""Resampling operators and others from super-resolution and restoration."""
