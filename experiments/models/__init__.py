"""The networks that the experiments train: Flax Linen, and one NNX twin. Sizes are fields; defaults are the papers'."""
