"""Wires between our own services; no promise to anyone outside."""
