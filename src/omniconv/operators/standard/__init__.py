"""Ordinary convolutions whose taps lie elsewhere: dilated, strided, with learned spacings."""
