"""Acceleration behind functionals: a torch reference, and compiled code that computes the same."""
