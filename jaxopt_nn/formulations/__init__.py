"""Level 2: programs for one arithmetic. They may differ in speed and in the order of float operations, never in arithmetic."""
