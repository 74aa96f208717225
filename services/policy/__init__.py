"""policy says which rules hold and whom they mean.

Owns   state.policy.rules.<kind>.<namespace>.<name>   a policy, compiled: rules that name selectors
       state.policy.selector.<id>                     the identities that a selector selects now
Hears  policies, groups of networks, Services with their EndpointSlices, pods and namespaces (resources), label sets
       with their numbers (identity)
Stops  The rules and members that nodes hold stay in force: traffic that was allowed or denied stays so. A new
       identity is a member of nothing until policy is back, so where a policy governs, it is denied.

A new identity costs one small delta for each selector that selects it; no rule is said again. A selector is said before
the first rule that names it and taken back after the last. Named ports are resolved here, to selectors of the
identities that have them, number by number, and groups of networks to selectors of these. A policy that does not
compile, or whose rules the bus does not take, is said as its default deny alone, logged, counted and shown in health.

Read `model.py`; `store.py` holds the indexes, `named.py` the named ports, `networks.py` the networks, `services.py`
the Services, `bus/labels.py` says when a selector selects.
"""
