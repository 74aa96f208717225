"""cilium.io CiliumLoadBalancerIPPool -> a message with the ranges that it may give.

Source: Cilium's documentation, "LoadBalancer IP Address Management", and its definition of the kind.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from bus.addresses import Address, family, parse
from bus.messages.resources import AddressRange, LoadBalancerPool
from bus.subjects import LOAD_BALANCER_POOL
from services.resources.manifests import words
from services.resources.manifests.meta import Key, Manifest, Resource
from services.resources.manifests.selectors import Selector, read_whole_selector
from services.resources.manifests.strict import Problems, Schema, joined, nearest

MOST_BLOCKS = 1000
OLD_API_VERSION = "cilium.io/v2alpha1"


class BlockSpec(Schema, frozen=True, kw_only=True):
    cidr: str = ""
    start: str = ""
    stop: str = ""


class PoolSpec(Schema, frozen=True, kw_only=True):
    blocks: list[BlockSpec] = []
    cidrs: list[BlockSpec] = []  # what v2alpha1 called the blocks at first
    service_selector: Selector | None = None
    allow_first_last_ips: str = "Yes"
    disabled: bool = False


class PoolManifest(Manifest, frozen=True, kw_only=True):
    spec: PoolSpec


def read_pool(manifest: PoolManifest, raw: dict[str, Any], key: Key, source: str, problems: Problems) -> Resource:
    spec = manifest.spec
    field, blocks = ("cidrs", spec.cidrs) if spec.cidrs else ("blocks", spec.blocks)
    if spec.cidrs and (spec.blocks or manifest.api_version != OLD_API_VERSION):
        problems.add("spec.cidrs", "is what blocks were called in an early v2alpha1; use spec.blocks alone")
    if not blocks:
        problems.add("spec.blocks", "is empty; a pool needs a block, with a cidr, or with start and stop")
    if len(blocks) > MOST_BLOCKS:
        problems.add(f"spec.{field}", f"has {len(blocks)} entries; use at most {MOST_BLOCKS}")
        blocks = []
    if spec.allow_first_last_ips not in ("Yes", "No"):
        hint = nearest(spec.allow_first_last_ips, ("Yes", "No"))
        problems.add(
            "spec.allowFirstLastIPs", f'"{spec.allow_first_last_ips}" is not a choice; use "Yes" or "No"{hint}'
        )
    without_ends = spec.allow_first_last_ips == "No"
    found = [_range(each, without_ends, f"spec.{field}[{at}]", problems) for at, each in enumerate(blocks)]
    ranges = _apart([each for each in found if each is not None], f"spec.{field}", problems)
    selector = read_whole_selector(raw["spec"], "serviceSelector", spec.service_selector, "spec", problems)
    pool = LoadBalancerPool(name=key.name, ranges=ranges, selector=selector, disabled=spec.disabled, manifest=raw)
    return Resource(key, source, ((LOAD_BALANCER_POOL.of(key.name), pool),), uid=manifest.metadata.uid)


def _range(block: BlockSpec, without_ends: bool, path: str, problems: Problems) -> AddressRange | None:
    """None: it is none, which was said."""
    if block.cidr and not (block.start or block.stop):
        return _of_cidr(block.cidr, without_ends, joined(path, "cidr"), problems)
    if block.cidr or not block.start:
        problems.add(path, "has to have a cidr, or a start and a stop, or a start alone for one address")
        return None
    ends: list[Address] = []
    for field, text in (("start", block.start), ("stop", block.stop or block.start)):
        wrong, parsed = words.address(text), parse(text)
        problems.add_if(joined(path, field), wrong)
        if parsed is not None:
            ends.append(parsed)
    if len(ends) < 2:
        return None
    first, last = ends
    if family(first) != family(last):
        problems.add(joined(path, "stop"), f"is {family(last)}, and start is {family(first)}; make them agree")
    elif int(last) < int(first):
        problems.add(joined(path, "stop"), f"{last} comes before start, {first}; exchange them")
    else:
        written = f"{first}-{last}" if block.stop else str(first)
        return _checked(AddressRange(first=str(first), last=str(last), written=written), path, problems)
    return None


def _of_cidr(text: str, without_ends: bool, path: str, problems: Problems) -> AddressRange | None:
    wrong = words.cidr(text, bare_address=True)
    problems.add_if(path, wrong)
    if wrong is not None:
        return None
    network = ip_network(text, strict=False)
    first, last = network.network_address, network.broadcast_address
    if without_ends and network.num_addresses > 2:
        first, last = first + 1, last - 1
    return _checked(AddressRange(first=str(first), last=str(last), written=str(network)), path, problems)


def _checked(found: AddressRange, path: str, problems: Problems) -> AddressRange | None:
    """None: no traffic can be sent to one of its ends, which was said."""
    wrong = [why for text in dict.fromkeys((found.first, found.last)) if (why := words.endpoint_address(text))]
    for why in wrong:
        problems.add(path, why)
    return None if wrong else found


def _apart(ranges: list[AddressRange], path: str, problems: Problems) -> list[AddressRange]:
    """By address, without those that overlap one before them, which is said of each."""
    kept: list[AddressRange] = []
    for each in sorted(ranges, key=_ends):
        (version, first, _), before = _ends(each), _ends(kept[-1]) if kept else (0, 0, 0)
        if version == before[0] and first <= before[2]:
            problems.add(path, f"{kept[-1].written} and {each.written} overlap; leave out what is there twice")
        else:
            kept.append(each)
    return kept


def _ends(each: AddressRange) -> tuple[int, int, int]:
    first, last = parse(each.first), parse(each.last)
    return (first.version, int(first), int(last)) if first is not None and last is not None else (0, 0, 0)
