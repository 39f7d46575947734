"""The HTTP services that clients of ASAP::O talk to, as a client of the delivery core: one module for each concern."""
