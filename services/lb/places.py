"""Where pods take connections, as far as their nodes may say so. Plain dictionaries; no I/O."""

from __future__ import annotations

from collections import defaultdict

from bus.addresses import Network, all_of, parse, parse_network
from bus.messages.dataplane import Endpoint
from bus.messages.ipam import Block
from bus.messages.resources import Pod

Name = tuple[str, str]  # (namespace, name)

NOT_AN_ADDRESS = "not an address"
OUTSIDE_BLOCK = "outside the node's blocks"


class Places:
    """Endpoints, and the blocks that their nodes hold: a node speaks only for addresses of its own blocks."""

    def __init__(self) -> None:
        self._endpoints: dict[Name, dict[str, Endpoint]] = defaultdict(dict)  # pod -> node -> its endpoint there
        self._pods_on: dict[str, set[Name]] = defaultdict(set)  # node -> pods with an endpoint there
        self._blocks: dict[str, Block] = {}  # by CIDR
        self._networks: dict[str, dict[str, Network]] = defaultdict(dict)  # node -> CIDR -> its block

    def put_endpoint(self, endpoint: Endpoint) -> None:
        pod = (endpoint.namespace, endpoint.pod)
        self._endpoints[pod][endpoint.node] = endpoint
        self._pods_on[endpoint.node].add(pod)

    def delete_endpoint(self, node: str, pod: Name) -> None:
        known = self._endpoints.get(pod, {})
        if known.pop(node, None) is not None:
            self._pods_on[node].discard(pod)
            if not self._pods_on[node]:
                del self._pods_on[node]
            if not known:
                del self._endpoints[pod]

    def put_block(self, block: Block) -> set[Name]:
        """The pods whose place may be another now. Raises: ValueError: it is no network; nothing is changed."""
        network = parse_network(block.cidr)
        if network is None:
            raise ValueError(f"{block.cidr} is not a block of addresses")
        touched = self.delete_block(block.cidr)
        self._blocks[block.cidr] = block
        self._networks[block.node][block.cidr] = network
        return touched | self._pods_on.get(block.node, set())

    def delete_block(self, cidr: str) -> set[Name]:
        """The pods whose place may be another now."""
        block = self._blocks.pop(cidr, None)
        if block is None:
            return set()
        del self._networks[block.node][cidr]
        if not self._networks[block.node]:
            del self._networks[block.node]
        return set(self._pods_on.get(block.node, ()))

    def of(self, pod: Pod, also_not_ready: bool = False) -> list[str]:
        """The addresses at which the pod takes connections now, whether it may be so or not."""
        if pod.phase in ("Succeeded", "Failed") or not (also_not_ready or (pod.ready and pod.phase == "Running")):
            return []
        if pod.host_network:
            return all_of(pod)
        endpoint = self._endpoints.get((pod.namespace, pod.name), {}).get(pod.node)
        if endpoint is None or endpoint.state != "ready" or endpoint.uid not in ("", pod.uid):
            return []
        return all_of(endpoint)

    def objection(self, pod: Pod, address: str) -> str | None:
        """Why the pod is not to be reached there, whatever its node says."""
        parsed = parse(address)
        if parsed is None:
            return NOT_AN_ADDRESS
        if not pod.host_network and not any(parsed in block for block in self._networks.get(pod.node, {}).values()):
            return OUTSIDE_BLOCK
        return None
