"""The dataset gateway: trainers never wait for data.

*Reading* (`order`, `sources`, `reader` …) turns the files of a pinned dataset version into one global sequence of batches that
depends on nothing but version, seed and epoch. *Serving* (`server`, `sessions`, `sharing` …) hands those batches to
trainers, each decoded once per host. They meet in `contract`.
"""
