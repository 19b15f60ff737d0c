"""Shipped with the library: conformance suites, fakes and faults, for our tests and for authors of an engine or store."""
