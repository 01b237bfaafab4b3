"""Convolutions whose kernel entries are functions of the value under them."""
