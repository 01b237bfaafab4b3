"""The operators: one file each, in a folder per family."""
