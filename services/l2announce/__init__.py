"""l2announce: which node answers for which address of a Service on the networks that nodes are on.

Owns    state.l2announce.announcement.<address>, state.l2announce.lease.nodes, state.l2announce.policyuse.<policy>
Hears   Services, Nodes and L2 announcement policies (resources), addresses of LoadBalancers (ipam), its own
        announcements; and nodes, which ask for their leases anew (req.l2announce.renew.<node>).
Says    for each address that a policy announces the one node that is to do it, changed by compare-and-set; and how each
        policy does. How long leases last.

Never do two nodes answer for one address. A node answers for an address only while its kernel's entry has not run out,
and the entry runs out `leaseDuration` after the node has sent the question whose answer granted it: whatever becomes of
the node, its dataplane or the bus, the kernel itself compares. Who grants gives an address to another node only when
the one before has said that its entry is gone, or when nothing was granted to that one for `leaseDuration` and some
more (`grants.py` has the rules and why they are enough). A lease is a node's, not an address's: how much is said
does not depend on how many Services there are.

An address stays where it is as long as that node lives and a policy selects it. When its node dies it goes to the one
that has the fewest; a node that comes back gets addresses one by one from those that have more. Such a move loses
nothing: the one before takes its entry away and says so before the next one answers, and every node serves what
reaches it. Neighbours are not told of it while that one lives, or their open connections would go to a node that does
not know them; who asks anew is answered by the next one.

Two replicas may run, one is active by the lease "l2announce" (bus/control.py). One that takes over moves nothing before
all grants that it does not know of have run out. While none is there, addresses are answered for until `leaseDuration`
after the last renewal, and by nobody after that.

Read `model.py` for who is to announce what, `grants.py` for who may.
"""
