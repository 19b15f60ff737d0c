"""Ordered, transactional key-value engines: the only thing that metadata needs of a database."""
