"""The platform: ingest nodes and relay. It can seal answers, and cannot open them."""
