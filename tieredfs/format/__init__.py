"""Bytes at rest: every record and header that TieredFS writes, encoded and decoded, and nothing else.

`FORMAT.md` is the document, `tests/format/golden` holds files that must decode forever.
"""
