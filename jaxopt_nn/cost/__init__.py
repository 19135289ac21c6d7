"""Level 6: what a program weighs and takes: ahead-of-time compilation, bytes, measured latency."""
