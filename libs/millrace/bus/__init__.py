"""NATS: the durable intake queue, registrations and ownership in KV buckets, loads, aborts."""
