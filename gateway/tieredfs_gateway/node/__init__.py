"""`tieredfs node`: the disks of this machine as chunk stores for volumes elsewhere. `tieredfs.chunk.node` is the client."""
