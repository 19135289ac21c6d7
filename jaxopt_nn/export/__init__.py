"""Level 4: a network as programs that run without its code, and back."""
