"""Benchmarks and the demo: programs that are run by hand, never imported by the product.

`python -m bench.mount` compares the mount with the file system below it and with JuiceFS; `python -m bench.demo` tells
the story of the product with every claim checked. Ratios between sides that were measured alternately in one run are
what counts; absolute figures belong to the machine that is printed beside them.
"""
