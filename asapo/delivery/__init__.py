"""Who gets which message next: positions, done ranges, leases, watermarks. Pure: no I/O, no clock (`now_s` goes in)."""
