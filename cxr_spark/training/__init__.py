"""Feature store to heads and their predictions, on the driver."""
