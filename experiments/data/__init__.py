"""Data of the experiments: functions that return a ``jaxopt_nn.Data``; a config names one and its arguments."""
