"""dataplane, one per node: turns desired state into BPF maps, programs and links. Start with node.py.

Owns    its endpoints (state.dataplane.endpoint.<node>.>), what it has applied, the flows it sees
Hears   namespaces, nodes, pods, identities, addresses, blocks, services, rules, selectors
Says    state.dataplane.endpoint.<node>.<namespace>.<pod>; evt.dataplane.applied.<node>; evt.dataplane.flows.<node>
Asked   req.dataplane.dump.<node>, req.dataplane.health.<node>, and CNI over a unix socket

When it stops, packets go on: maps, programs and links are pinned or attached in the kernel and stay. New pods wait
for it, and changes of policy reach this node when it is back.

    __main__  wiring              datapath  devices, programs and maps, made ready at the start
    node      hears, writes, says           pods      what the container runtime asks
    model     what maps should hold (pure), with policy, services, tables
    layouts   bytes               effects   maps                        links    veths, routes, tunnels (netlink)
    attach    which program belongs where, and what leads there (pure)  hooks    keeps it attached: tcx, clsact, cgroup
    loader    compiles by way of compiler, in a process of its own      bpf/     the C (limits, reasons: its numbers)
    migrate, layouts_v1           maps of another size or layout into those that take their place
    recall, statefile             what was heard last, on disk: the node comes up with it while the bus is away
    fallback/ nftables rules where the kernel takes no BPF              notrack  pods' connections, not tracked twice
    sockets, sock_diag   ends sockets that are connected to a backend which is gone
    ring, flows, flow_events      events out of the kernel, with names, to the bus
    cni, endpoints, addresses, journal, leftovers                       a pod's life on this node

Capabilities: CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON (programs, maps, links), CAP_SYS_ADMIN (entering a pod's network
namespace); effects.py, hooks.py, links.py, netlink.py, sock_diag.py and compiler.py are the files that need them.
"""
