"""`make bench` and `make bench-claims`: machine, kernels, engine and stack in figures."""
