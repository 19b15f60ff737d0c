"""Chunk stores: where the pieces of blocks lie. Local directories now; nodes and buckets by the same protocol."""
