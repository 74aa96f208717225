"""Clusters on one machine, in network namespaces: real BPF, real NATS, real CNI calls.

Demo, tests and benches stand on it.

The lab plays the machine room (links, a router, an outside host), the kubelet, the scheduler and the controllers of
Deployments, StatefulSets and DaemonSets. Everything else that runs in it is the product, with the same code as on a
real node.

Read it in this order:
    names.py, plan.py, settings.py   pure: what things are called, their addresses, Helm values -> environments
    programs.py                      pure: which processes a lab consists of
    host.py, namespaces.py, topology.py, processes.py    effects: the only code here that touches the kernel
    state.py                         what is written down about a lab, under /run/plexus/lab/<name>
    supervisor.py                    the one process that keeps the others alive; packets do not need it
    cluster.py, scheduler.py, workloads.py               what Kubernetes' controllers would do
    fabric.py                        what a cloud's network would do, when asked: the router knows where pods are
    kubelet.py, runtime.py, images.py, pod_server.py     what a node's kubelet and container runtime would do
    up.py, cleanup.py, execute.py    `plexus lab up`, `down`, `exec`
    testing.py, capture.py           the same for tests and benches

Nothing is remembered that cannot be found again: `plexus lab down` works by names, also after a crash of anything.
"""
