"""Level 4: what changes ``apply`` or shapes, and what is found by running a model."""
