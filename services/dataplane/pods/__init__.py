"""A pod's life on this node, from CNI ADD to DEL.

- `cni`         what a runtime may ask, and how it is answered (pure)
- `cni_server`  the socket that it asks on
- `verbs`       ADD, DEL, CHECK, GC and STATUS, done on this node
- `endpoints`   which sandbox has which link and address (pure)
- `addresses`   leased out of the node's blocks (pure)
- `blocks`      which addresses come out of, as the bus says
- `leftovers`   what is left of a sandbox, until it is gone
- `publish`     what the bus is told of endpoints
- `host`        what all of this asks of the node
- `restart`     what was here before, taken up again
"""
