"""Criteria of pruning: what each weight is worth, one idea a file."""
