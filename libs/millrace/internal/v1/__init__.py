"""Generated stubs of the internal wires, package `millrace.internal.v1`."""
