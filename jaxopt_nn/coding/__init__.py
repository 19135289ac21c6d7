"""Level 3: entropy coding, and the artifact that a compressed network ships as."""
