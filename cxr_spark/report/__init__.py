"""Measures to tables, figures and one page. Knows neither Spark nor TensorFlow."""
