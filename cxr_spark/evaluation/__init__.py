"""Predictions to measures with their uncertainty. Knows neither Spark nor TensorFlow."""
