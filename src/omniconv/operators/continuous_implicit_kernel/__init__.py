"""Convolutions whose kernel is a continuous function, sampled on the grid."""
