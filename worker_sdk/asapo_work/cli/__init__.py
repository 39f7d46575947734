"""Sub-commands for those who read data: `asapo ls`, `tail`, `get`, `query` and `doctor`."""
