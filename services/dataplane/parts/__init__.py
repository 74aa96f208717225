"""Capabilities: what the bus says of each, the tables that follow, what of it is shown. Pure.

They know nothing of each other. Which there are, and what each is about, is the list in model.py; how one plugs in is
part.py.
"""
