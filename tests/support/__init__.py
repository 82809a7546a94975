"""What tests share: real processes, a played vault, raw clients."""
