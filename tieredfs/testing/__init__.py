"""Shipped with the library: conformance suites, fakes and faults, for our tests and authors of engines and stores."""
