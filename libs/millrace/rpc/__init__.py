"""gRPC servers and channels as every service opens them."""
