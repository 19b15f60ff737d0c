"""The status page: what is where, what is not yet safe, what is slow; as pictures, as JSON, and as one file."""
