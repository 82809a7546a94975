"""The gRPC services of the platform."""
