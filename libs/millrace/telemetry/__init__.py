"""Traces, metrics and logs: the names, the set-up, the propagation and the local span store."""
