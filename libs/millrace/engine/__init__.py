"""Executes step plans on one device: models, paged attention, KV cache, rows. No network."""
