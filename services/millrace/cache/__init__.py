"""The cache service: the only process that touches Redis. Without Redis it answers UNAVAILABLE."""
