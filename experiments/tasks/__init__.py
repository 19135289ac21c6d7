"""Six tasks of one's own, end to end: a model and a ``Task`` in a few lines each, as a user would write them."""
