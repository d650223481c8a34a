"""Image folders to a manifest: which image, which finding, which patient, which split."""
