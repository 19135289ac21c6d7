"""Level 4: a framework's model becomes ``(apply, variables)``, and nothing more."""
