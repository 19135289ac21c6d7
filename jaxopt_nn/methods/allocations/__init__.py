"""Allocations of pruning: how a sparsity is shared out among leaves, one idea a file."""
