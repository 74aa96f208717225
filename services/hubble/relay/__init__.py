"""relay, one per cluster or several: the Hubble API of all nodes.

Hears   Node: which observers there are
Asks    each node's observer, over the network, when a client asks; flows do not go by the bus
Serves  the Hubble API (gRPC) over TCP; a node that does not answer is named, and the others' flows come

When it stops, each observer can still be asked by itself. It keeps nothing.
"""
