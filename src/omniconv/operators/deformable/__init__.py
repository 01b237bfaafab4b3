"""Deformable convolution: every tap reads where the input tells it to."""
