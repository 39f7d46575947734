"""What the clients of ASAP::O 25.3.0 say and expect to hear: bytes, documents, routes, errors. Pure: no I/O.

Every decoder is total: it returns a value or raises `asapo.errors.WrongInput` (or `UnsupportedVersion`), whatever it is
given. Nothing here is imported by the native path; the gateways in the rooms stand on it.
"""
