"""Level 7: recipes, training, evaluation, reports: all of it in one call."""
