"""Manifest to feature store: every backbone over every image, once, on the executors."""
