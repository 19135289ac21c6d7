"""Data of the experiments: functions ``(fold, folds, seed) -> jaxopt_nn.pipeline.data.Data``."""
