"""The native protocol, pure: events, their byte layout, the session table and the limits. No I/O."""
