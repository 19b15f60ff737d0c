"""Care of what is stored: garbage collection, scrub, repair, rebuild, emptying a disk."""
