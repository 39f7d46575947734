"""Receiver: takes frames in, stores them in segments, indexes them and serves them to readers."""
