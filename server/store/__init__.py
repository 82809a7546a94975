"""The spool: key layout, atomic Functions, and the clients that may call them."""
