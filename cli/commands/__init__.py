"""One module per command; cli/main.py puts them together."""
