"""Models: the catalogue, fetching, importing and how much memory they need."""
