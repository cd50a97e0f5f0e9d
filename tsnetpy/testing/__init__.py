"""Tailnets in a box: virtual time, seeded randomness, an internet in memory, whole tailnets in one process."""
