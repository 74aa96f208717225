"""Programs and maps into the kernel.

- `datapath`    devices, programs and maps, made ready at the start
- `loader`      compiles by way of `compiler`, a process of its own
- `migrate`     maps of another size or layout (`layouts_v1`, `layouts_v2`) into those that take their place
- `masquerade`  the node's own connections leave masqueraded ones their ports
"""
