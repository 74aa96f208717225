"""ipam: which node hands out which block of pod addresses, and which Services have which address of a pool.

Owns    state.ipam.block.<cidr>, state.ipam.serviceaddress.<address>, state.ipam.addressrequest.<namespace>.<name>,
        state.ipam.pooluse.<pool>
Hears   Nodes, Services and LoadBalancer pools (resources), endpoints (dataplane), its own blocks and addresses.
Says    for each node, with ipam.mode=kubernetes, the blocks that its Node has in spec.podCIDRs; else one block of each
        family, another one when more than three quarters of its addresses of that family are in use, so that a pod
        start never waits for one. Blocks are taken by compare-and-set: no two nodes ever hold the same.
        For each address of a pool that is given the Services that have it, changed by compare-and-set too; how each
        Service of type LoadBalancer does with what it asks for; how much of each pool is used.

Nodes give out addresses of their blocks by themselves; this service is not
asked when a pod starts. Which block a node gets is counted from a hash of its name, so losing the log gives the same
blocks again, but for collisions that fall another way.

A node that is deleted loses its blocks when no endpoint is left in them. With the pool exhausted the nodes that have
blocks go on, those that need one are listed in the service's health and in the log.

A Service keeps its address as long as a pool holds it and selects the Service. With the pools exhausted a Service
waits, which its status and the log say; it is none of this service's health.

Two replicas may run, one is active by the lease "ipam" (bus/control.py). When it stops, nodes go on allocating out of
the blocks that they hold, and Services keep their addresses; only new nodes, nodes that fill up, and new Services wait.

Read `model.py` and `given_blocks.py` for blocks, `ranges.py` and `service_addresses.py` for Services: all of it is
there, without I/O.
"""
