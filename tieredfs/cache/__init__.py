"""The SSD tier: staging, draining, resident files, filling, eviction."""
