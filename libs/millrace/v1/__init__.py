"""Generated stubs of the public API, package `millrace.v1`."""
