"""Schedules the requests of one model over its workers, step by step."""
