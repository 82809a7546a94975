"""Composition roots: each module is one process, wires clock, randomness, keys and clients, and runs."""
