"""Benchmarks on real servers: `python -m bench`. Not installed with the scripts; needs `pip install '.[bench]'`."""
