"""hubble, one per node: what the kernel saw, with names, for whoever asks.

Reads   the kernel's ring buffer of events (pinned map `events`), in a process of its own: a slow reader here costs
        events, which are counted, and never a packet or the dataplane's time
Hears   pods and namespaces, identities, addresses, Services: the names that events are joined with
Asks    the node's dataplane what its own numbers mean: which policies decided, which network it is
Says    evt.hubble.flows.<node>: what it has observed
Serves  the Hubble API (gRPC, api/*.proto) at a unix socket; `relay` serves the same for all nodes together

When it stops, nobody sees flows; packets go on, and are counted in the kernel as ever. What comes meanwhile is kept in
the kernel's buffer until that is full.

In this order:

- `records`  bytes of the ring buffer -> records (pure)
- `names`    who is at an address, which Service, which policies decided; as heard on the bus (pure)
- `flow`     one flow, and what it is on the wire (pure)
- `joiner`   records -> flows (pure)
- `kept`     the last flows, and what was lost (pure)
- `filters`  a client's filters -> a predicate (pure)
- `merge`    several nodes' flows in one order of time (pure)
- `asked`    a client's request, checked (pure)
- `reasons`  why packets are dropped, in words (pure)
- `observed` what one node's observer knows
- `ring`     the kernel's buffer, read; `pinned` opens it
- `hearing`  what the bus says -> names
- `naming`   numbers that only the dataplane can name
- `telling`  flows -> the bus
- `peers`    which observers there are (pure)
- `server`   the API of one node
- `nodes`    the observers of all nodes, as a relay asks them
- `gather`   one client's flows of all nodes
- `relay/`   the API of all nodes, a process of its own
- `serving`  both, at a socket and over TCP; `tls` says who may come
"""
