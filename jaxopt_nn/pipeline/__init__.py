"""Level 8: tasks, recipes, training, evaluation: all of it in one call."""
