"""Convolutions that know which of their inputs are valid."""
