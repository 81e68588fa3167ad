"""Every field that a request may have, at every edge, and what becomes of it: one table."""
