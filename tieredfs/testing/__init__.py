"""Shipped with the library: conformance suites, fakes and faults, for our tests and for whoever writes an engine or a store."""
