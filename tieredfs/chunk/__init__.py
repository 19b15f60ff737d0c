"""Chunk stores: where the pieces of blocks lie. Local disk directories; nodes and buckets implement the same protocol."""
