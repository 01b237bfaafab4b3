"""Convolutions over hypercomplex numbers, fixed or learned."""
