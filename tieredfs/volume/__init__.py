"""The volume: what every front end speaks to. Wiring of engine, layers, disks and tier lives here."""
