"""Runnable experiments: thin mains, their data and their models."""
