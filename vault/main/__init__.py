"""Composition root of the vault: wires clock, randomness, keys and database, and runs."""
