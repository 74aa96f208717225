"""dataplane, one per node: turns desired state into BPF maps, programs and links. Start with node.py.

Owns    its endpoints (state.dataplane.endpoint.<node>.>), what it has applied
Hears   namespaces, nodes, pods, identities, addresses, blocks, services, rules, selectors
Says    state.dataplane.endpoint.<node>.<namespace>.<pod>; evt.dataplane.applied.<node>
Asked   req.dataplane.dump.<node>, req.dataplane.health.<node>, and CNI over a unix socket

When it stops, packets go on: maps, programs and links are pinned or attached in the kernel and stay. New pods wait
for it, and changes of policy reach this node when it is back.

    __main__  wiring              node      hears, settles, writes        model   what maps should hold (pure)
    settings  what a node is told dump      what parts show of maps       batch   work that is not cut off

    pods/     a pod's life: CNI, endpoints, addresses, what the bus is told of them, what a restart takes up
    keep/     maps, programs, devices and routes compared and put back; what was heard last, on disk
    fallback/ nftables rules where the kernel takes no BPF
    load/     programs and maps into the kernel, at the start
    parts/    capabilities: addresses, masquerading, policy, Services (pure); part.py says how they plug in
    kernel/   the only system calls: maps, programs, links, routes, nftables
    store/    files of this node
    shapes/   bytes and numbers that C and Python share (pure)
    bpf/      the C: programs/, and in include/ one header a feature      headers/  what bcc expects of a kernel's

Imports go down this list only.

Capabilities: CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON (programs, maps, links), CAP_SYS_ADMIN (entering a pod's network
namespace); the files of kernel/ and load/ are those that need them. No compiler: the programs were built before.
"""
