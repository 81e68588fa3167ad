"""The public edge: gRPC and HTTP in, one pipeline behind both."""
