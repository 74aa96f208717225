"""Programs and maps into the kernel.

- `datapath`    devices, programs and maps, made ready at the start
- `loader`      programs and maps, found pinned or loaded
- `install`     an object's programs, with this node's numbers, into the kernel
- `objects`     what was compiled, in files
- `build`       every object, for `make setup`, by way of `compiler`, a process of its own
- `migrate`     maps of another size or layout (`layouts_v1`, `layouts_v2`) into those that take their place
- `masquerade`  the node's own connections leave masqueraded ones their ports
"""
