"""Settings: declared once in frozen dataclasses, read from flags, environment and one file."""
