"""What kproducer.py and kconsumer.py stand on. It imports neither."""
