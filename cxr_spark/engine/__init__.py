"""The compute core: files to pixels to features, on any device, with no Spark."""
