"""Producer: takes frames from a detector and sends them to the receivers."""
