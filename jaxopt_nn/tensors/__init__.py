"""Level 1: the compressed tensors, one file each."""
