"""Decisions: pure functions and state machines. State and events in, actions out; no clock, file, socket or lock."""
