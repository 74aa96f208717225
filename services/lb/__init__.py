"""lb: which addresses and ports stand for a Service, and which pods are behind them.

Owns    state.lb.service.<namespace>.<name>, state.lb.hostports.<node>.<namespace>.<pod>
Hears   Services, Pods, EndpointSlices and Nodes (resources), endpoints (dataplane), blocks and Services' addresses of
        pools (ipam).
Says    for each Service with an address its frontends, each with its backends, sorted, so that the same state is
        always the same bytes; where it is reached from outside (node ports, external addresses, addresses of pools),
        and what its manifest says of how: each once, for the backends are the frontends'. For each pod its ports of
        its node.

A Service has the pods that it selects: those that are ready (or all, if it publishes those that are not) and whose
node has their endpoint in operation; pods on the host's network are reached at the addresses that the kubelet
reported. It has what its EndpointSlices say, too, but for those that Kubernetes makes of the pods that it selects.
Behind an address of one family are backends of that family. A headless Service has no frontend, and nothing is said
of it.

A node is believed only about addresses of its own blocks. A backend that is elsewhere, or is no address with a port,
is left out, counted, and shown in health.

Two replicas may run, one is active by the lease "lb" (bus/control.py). It keeps no other truth than what it hears.
When it stops, the last backends stay; nodes keep balancing over them.

Read `model.py`, without I/O; `exposures.py` and `host_ports.py` have what outsiders see; `places.py` holds the
endpoints and who may say where they are.
"""
