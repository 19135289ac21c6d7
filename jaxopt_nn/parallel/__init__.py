"""Level 5: several devices: batched sharded inference."""
