"""Loads against a server and what their clients see: when to ask, what to ask, figures.

Arrivals, prompts, traces and statistics are pure; targets and the run are the only I/O.
"""
