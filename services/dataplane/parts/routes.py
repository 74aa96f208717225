"""By which of their nodes' addresses the blocks of other nodes are reached, for the host's own routes. Pure."""

from __future__ import annotations

from bus import subjects
from bus.messages.ipam import Block
from bus.messages.resources import Node
from services.dataplane.part import Fact, Hears, Part
from services.dataplane.parts.routing import Routing, check_block, check_node
from services.dataplane.shapes.ip import block_of


class Routes(Part):
    """See the module. `node`: this one."""

    by_rules = True

    def __init__(self, node: str, routing: Routing) -> None:
        super().__init__()
        self.hears = (
            Hears(subjects.NODE, self._put_node, self._delete_node, check_node),
            Hears(subjects.BLOCK, self._put_block, self._delete_block, check_block),
        )
        self.routing = routing
        self.wanted: dict[str, str] = {}
        """CIDR of a block -> the neighbour that is its next hop, or the tunnel's other end."""
        self.unreachable: dict[str, str] = {}
        """Nodes that should be next hops, and are on no network of ours: name -> address."""
        self.elsewhere: Fact[str, str] = Fact("elsewhere").keep()
        """All that are reached: as `wanted`, and "" where the fabric knows the way."""
        self._node = node
        self._nodes: dict[str, Node] = {}
        self._blocks: dict[str, Block] = {}
        self._is_stale = False

    def send_by(self, routing: Routing) -> None:
        """How the node sends to others is this now."""
        self._is_stale |= routing != self.routing
        self.routing = routing

    def settle(self) -> None:
        if self._is_stale:
            self._is_stale = not self.tried("routes", self._settle)

    def _put_node(self, node: Node) -> None:
        self._nodes[node.name] = node
        self._is_stale = True

    def _delete_node(self, name: str) -> None:
        self._is_stale |= self._nodes.pop(name, None) is not None

    def _put_block(self, block: Block) -> None:
        self._blocks[block.cidr] = block
        self._is_stale = True

    def _delete_block(self, cidr: str) -> None:
        self._is_stale |= self._blocks.pop(cidr, None) is not None

    def _settle(self) -> None:
        wanted: dict[str, str] = {}
        unreachable: dict[str, str] = {}
        by_fabric: dict[str, str] = {}
        for cidr, block in self._blocks.items():
            version, node = block_of(cidr).version, self._nodes.get(block.node)
            hop = self.routing.choose(node.addresses, version) if node else ""
            if block.node == self._node or not hop or version not in self.routing.families:
                continue
            if self.routing.is_neighbour(hop):
                wanted[cidr] = hop
                continue
            by_fabric[cidr] = ""
            if self.routing.is_direct:
                unreachable[block.node] = hop
        self.wanted, self.unreachable = wanted, unreachable
        for cidr in self.elsewhere.keys() - wanted.keys() - by_fabric.keys():
            self.elsewhere.delete(cidr)
        for cidr, hop in (wanted | by_fabric).items():
            self.elsewhere.put(cidr, hop)
