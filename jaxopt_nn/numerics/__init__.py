"""Level 0: arrays in, arrays out; no trees, no models."""
