"""ipam: which node hands out which block of pod addresses.

Owns    state.ipam.block.<cidr>
Hears   Nodes (resources), endpoints (dataplane), its own blocks.
Says    for each node one block of each family; another one when more than three quarters of its addresses of that
        family are in use, so that a pod start never waits for one. Blocks are taken by compare-and-set: no two nodes
        ever hold the same.

Nodes give out addresses of their blocks by themselves; this service is not
asked when a pod starts. Which block a node gets is counted from a hash of its name, so losing the log gives the same
blocks again, but for collisions that fall another way.

A node that is deleted loses its blocks when no endpoint is left in them. With the pool exhausted the nodes that have
blocks go on, those that need one are listed in the service's health and in the log.

Two replicas may run, one is active by the lease "ipam" (bus/control.py). When it stops, nodes go on allocating out of
the blocks that they hold; only new nodes, and nodes that fill up, wait.

Read `model.py`: all of it is there, without I/O.
"""
