"""What Plexus costs, beside plain Linux routing, in one run on this machine. `make bench`, or `python -m bench --help`.

What is measured, and against what:

    packets    nanoseconds for each program and path, by the kernel's test run of a packet, and for the connect hooks
    traffic    TCP stream, request/response and short connections between two pods of one node and of two nodes, by
               IPv4 and by IPv6, with Plexus in the way (a lab in native mode) and without (`plain.py`: the same
               namespaces, links and MTU, and nothing but routes). The two take turns, A B A B, so that a machine that
               slows down slows both.
    tunnel     the same across nodes by VXLAN, beside the kernel's own VXLAN device with routes
    masquerade short connections of two pods to one address and port outside: how many of 10 000 fail, or wait for a
               packet that is sent again, beside nftables' masquerade in the same seconds
    pods       the CNI executable, ADD and DEL, one after the other and many at once
    policy     from the commit of a policy to the last of three nodes that enforces it
    survival   what TCP streams and numbered packets notice of dataplanes that are killed and started again
    memory     one idle dataplane process

Traffic is compared pair by pair: `ratio` is the median of the pairs' ratios, `of pairs` the worst and the best. Clients
and servers are pinned: those of a stream to a processor each, others together (`Load.processors`). `others` is how much
of the processors' time went to somebody else meanwhile, to another program or to another machine on the same hardware;
over a tenth, a rate is called noisy and not judged. "TCP stream, per CPU" is what a processor carries in a second that
it spends on both ends and their packets: on a busy machine that is the figure to go by.

Read `harness.py` (rounds, medians, ratios) and `bars.py` (what was promised) first: they are pure. `load.c` is the load
itself, `datapath.py` holds the programs without a lab. A bench is not a test: it exits 0 however the figures are, and
says beside each whether the bar was reached, and in brackets what the peer has there.
"""
