"""The kernel driver: the FUSE protocol spoken on /dev/fuse, with passthrough and daemon hand-over."""
