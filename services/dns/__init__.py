"""The DNS proxy of a node: which names may be asked for, and which addresses answers give them.

Not wired yet: nothing is redirected to it, and rules on names are refused (docs/adr/0036-layer-7.md).

A process of its own: what becomes of the rest of the node, or of Envoy, does not interrupt names. While it is away
questions that rules of names are for get no answer, and resolvers ask again.

Read in this order: `bus/patterns.py` (rules), `wire.py` (messages), `names.py` (what is known of names), all pure; then
`proxy.py`, which does input and output.
"""
