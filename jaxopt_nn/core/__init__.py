"""Level 2: paths, transforms and their combinators, rules, passes, what a method knows of a model, reports."""
