"""The demo: a model trained into a mounted volume that loses its trainer, two of its disks and its SSD cache.

`python -m bench.demo` tells it in about three minutes and checks each claim. `story` has the steps, `train` is an
ordinary PyTorch script that knows nothing of TieredFS, `trainer` runs and kills it, `volume` drives the command line as
a user would, `speed` is the last table.
"""
