"""Measures the other rooms against this machine's limits and against programs people write."""
