"""Services with one fault each, seeded on purpose: the rehearsal must notice every one of them.

Each module runs as a real process in place of the service it is made from. What is changed in it is one
thing that a tired developer might write; everything else is the product's own code.
"""
