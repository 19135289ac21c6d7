"""Configurations of the experiments, one claim each."""
