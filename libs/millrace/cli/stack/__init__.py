"""A local stack: its processes, their wiring, their supervision."""
