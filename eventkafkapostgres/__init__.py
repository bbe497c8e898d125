"""What kproducer.py and kconsumer.py stand on. It imports neither."""

__version__ = "1.0.0"  # the same as in the folder above: a test compares them
