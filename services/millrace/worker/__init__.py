"""The worker service: one engine, one paged KV cache, executed by plans from one scheduler."""
