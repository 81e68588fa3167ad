"""The HTTP edge: OpenAI-compatible routes, plain routes, health and metrics."""
