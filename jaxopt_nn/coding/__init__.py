"""Level 3: the artifact that a compressed network ships as."""
