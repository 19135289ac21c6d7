"""Performance claims: each module runs one, prints JSON lines, then a table with the CPU model."""
