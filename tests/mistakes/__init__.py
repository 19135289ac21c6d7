"""Mistakes that users make, each with the message that it gets: ``python -m tests.mistakes`` prints them all."""
