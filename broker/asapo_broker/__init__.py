"""Broker: hands stored messages out to groups of consumers and answers queries."""
