"""C++ kernels for CPUs: built from `src/` for the machine at hand, called through ctypes."""
