"""The gRPC services of the vault."""
