"""Tools for tests, ours and our users: process launcher, fakes, fault wrappers. Never imported by run-time code."""
