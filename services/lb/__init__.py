"""lb: which addresses and ports stand for a Service, and which pods are behind them.

Owns    state.lb.service.<namespace>.<name>
Hears   Services, Pods and EndpointSlices (resources), endpoints (dataplane), blocks (ipam).
Says    for each Service with an address its frontends, each with its backends, sorted, so that the same state is
        always the same bytes.

A Service with a selector has the pods that it selects: those that are ready and whose node has their endpoint in
operation; pods on the host's network are reached at the addresses that the kubelet reported. A Service without a
selector has what its EndpointSlices say. Behind an address of one family are backends of that family. A headless
Service has no frontend, and nothing is said of it.

A node is believed only about addresses of its own blocks. A backend that is elsewhere, or is no address with a port,
is left out, counted, and shown in health.

Two replicas may run, one is active by the lease "lb" (bus/control.py). It keeps no other truth than what it hears.
When it stops, the last backends stay; nodes keep balancing over them.

Read `model.py`, without I/O; `places.py` holds the endpoints and who may say where they are.
"""
