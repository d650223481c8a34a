"""Find the backbone and head that tell chest X-rays apart best, with Spark, Keras and petastorm."""

__version__ = "0.1.0"
