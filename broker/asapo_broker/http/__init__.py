"""The HTTP front: a process of its own, a client of the delivery core like any other."""
