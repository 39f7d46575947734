"""Tools for tests, ours and our users': process launcher, fakes, fault wrappers, the checker.

Never imported by run-time code, but for the command `asapo selfcheck`.
"""
