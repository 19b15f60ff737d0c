"""The main program of one worker of several: told on standard input what to serve, it serves until that ends."""

import sys

from tieredfs_gateway.s3.server import serve_alone
from tieredfs_gateway.s3.serving import decode

if __name__ == "__main__":
    serve_alone(decode(sys.stdin.buffer.readline()), orphaned=sys.stdin.fileno())
