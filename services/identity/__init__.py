"""identity says who is who: a number for every label set, an identity for every address.

Owns   state.identity.identity.<number>    a label set's number, 256 to 2^24 - 1, taken by compare-and-set
       state.identity.address.<address>    a pod's or node's address: identity, node, and the way to that node
Hears  pods, namespaces and nodes (resources), endpoints (dataplane), blocks (ipam), and its own numbers
Stops  Known label sets and addresses stay as the nodes have them: traffic goes on. A pod with labels never seen
       before waits for its number, denied in every direction with a policy, and nobody learns new addresses.

A pod has its identity from its labels alone, before it has an address. An address counts only as its node may say it:
inside a block that the node holds, for a pod that is bound to it, and claimed by no other. Everything else is refused,
logged and counted by reason, so one node cannot take the address or the identity of another's pod.

Read `model.py`; `store.py` is what it knows, `bus/labels.py` what a label set is.
"""
