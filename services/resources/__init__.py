"""resources: what the user wants, checked, numbered and kept. The root of everything else on the bus.

Owns    state.resources.*: Namespace, Node, Pod, Service, EndpointSlice, Deployment, StatefulSet, DaemonSet, Policy,
        ClusterAddress.
Hears   nothing: people and controllers ask it. `req.resources.apply` brings manifests, `req.resources.bind` a
        scheduler's choice, `req.resources.podstatus.<node>` what a kubelet sees. Or, where PLEXUS_SOURCE says so, a
        Kubernetes API server: then those who ask are sent there, and what ipam gave is heard, to be written into
        statuses.
Says    each resource as a message that needs no further checking, with the manifest as it was written.

Two replicas may run. The one that holds the lease "resources" answers; the other waits. Nothing is kept but the log, so
a replica that takes over reads the log, takes away what an interrupted request left (`plan_tidy`) and goes on. A
request is all or nothing as far as checking goes; one that was cut off by a death is finished by asking again.

When it stops: nothing new is learned. Packets, policies, Services and pods that are there go on; nodes and all other
services keep what they have heard, and newcomers read the log itself.

Read in this order:
    kind.py       what a kind of manifest is; kinds/ has a row for each, registry.py all of them.
    manifests/    a document -> messages, or refusals that name the place. One module for each group of kinds.
    model.py      (what is there, what is asked) -> steps: addresses of Services, what goes with what, what is fixed.
    order.py      which kind is said first, and which is taken away first.
    store.py      what is there, indexed.
    kubernetes/   an API server as the source.
    handlers.py   requests -> model -> log, one at a time.
"""
