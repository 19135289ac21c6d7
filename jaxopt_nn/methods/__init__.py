"""Level 3: one idea a file; factories that return a Transform, a Rule, a criterion or a loss."""
