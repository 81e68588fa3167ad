"""The local span collector: takes OTLP, keeps the last requests, forwards to a tracing UI."""
