"""Convolutions whose kernel is generated from their input."""
