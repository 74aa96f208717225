"""Capabilities: what the bus says of each, and the tables that follow. Pure; parts know nothing of each other.

- `ipcache`     who is at which address, and by way of which node
- `masquerade`  which destinations see pods' own addresses
- `people`      who the pods of this node are
- `policy`      who may speak to whom
- `services`    frontends and their backends
- `endpoints`   which pods are here, and under which policy
- `connections` which connections there are; programs write them
- `counters`    what was let through and dropped, and why; programs count it
"""
