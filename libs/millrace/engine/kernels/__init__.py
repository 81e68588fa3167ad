"""Kernels of our own, one package per kind of device."""
