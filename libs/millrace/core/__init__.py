"""Domain types: standard library only, imported by everything, importing nothing of ours."""
