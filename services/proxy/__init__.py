"""The proxy of a node: one Envoy for HTTP and TLS connections that rules of layer 7 are for.

Not wired yet: nothing is redirected to it, and such rules are refused (docs/adr/0036-layer-7.md).

Envoy is a process of its own: it serves on while this service is away, is found again when it is back, and is started
again when it dies. While it is dead, what has such rules is refused, and all else goes on.

Read in this order: `slots.py` (what is allowed behind a port), `routes.py` and `resources.py` (what that is for Envoy),
`exchange.py` (what to tell it), then what does input and output: `process.py`, `bootstrap.py`, `ads.py`.
"""
