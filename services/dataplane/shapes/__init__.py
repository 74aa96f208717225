"""Bytes and numbers that C and Python share, and plans made of them. Pure, and imports nothing else of the dataplane.

- `table`    what one map should hold
- `layouts`  keys and values as bytes, and what keys are called; `events`: what programs tell
- `protocols` IANA's numbers; `substitutes`: ports that stand for others
- `ip`       addresses and blocks, as they are written
- `limits`   kinds and sizes of maps, as the C has them; `sizes`: how many entries each is given
- `ports`    those of masqueraded connections
- `devices`  which links lead out
- `maglev`   which backend each slot of a Service's table has
- `again`    who is judged again after a write
- `reasons`  why packets are dropped
- `programs` which there are, in which file
- `attach`   which program belongs where, and the steps to attach it
"""
