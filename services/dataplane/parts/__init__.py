"""Capabilities: what the bus says of each, and the tables that follow. Pure; parts know nothing of each other."""
