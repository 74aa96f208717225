"""What keeps a node's pods going while the kernel takes no BPF programs: nftables rules made of the same tables.

The node's model stays the only source. `maps.RuleMaps` stands where the BPF maps stand: it takes the same writes, and
after each it renders everything anew (`rules.py`, pure) and puts it in force as one transaction. `handover.py` decides
which of the two is at work, and goes from one to the other.

What differs from BPF while it lasts is in docs/adr/0015-fallback.md. Policy is not among it: a direction that is
enforced is judged by the same entries, and what is not known is closed.
"""
