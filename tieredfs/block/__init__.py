"""Blocks: encode, place, write, read, decode, repair."""
