"""Pure functions of tensors; no layers."""
