"""A demonstration on real servers: `python -m demo`. Not installed with the scripts; needs `pip install '.[demo]'`."""
