"""Structures of pruning: what is kept or goes as one, one idea a file."""
