"""TieredFS: tiered checkpoint and dataset storage.

A mounted filesystem at the speed of the local SSD, over a sharded, erasure-coded store. `ARCHITECTURE.md` names the
parts and the direction of every import between them; this package imports none of them, so that importing one leaf
does not import the world.
"""

__version__ = "0.1.0"
