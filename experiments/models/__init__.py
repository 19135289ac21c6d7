"""Networks that the experiments train, in Flax Linen and one in NNX. Default sizes are the papers'."""
