"""C and Python agree on every struct that they share: sizes, offsets and constants, as the C compiler sees them."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.labels import IDENTITY_MAX, IDENTITY_MIN, RESERVED
from services.dataplane.model import NodeModel
from services.dataplane.parts.policy import entries
from services.dataplane.shapes import layouts, limits, reasons
from services.dataplane.shapes.layouts import (
    BackendEntry,
    BackendKey,
    Choice,
    ChoiceKey,
    Connection,
    ConnectionKey,
    Counter,
    DeviceEntry,
    EndpointEntry,
    EventRate,
    IpcacheEntry,
    LivingKey,
    MapShape,
    NamedPortKey,
    NatEntry,
    NatKey,
    PolicyMapEntry,
    PolicyMapKey,
    Prefix,
    ServiceEntry,
    ServiceKey,
    SockReverse,
    SockReverseKey,
)
from services.hubble import records

INCLUDE = Path(layouts.__file__).parents[1] / "bpf/include"

STRUCTS: dict[str, tuple[struct.Struct, str]] = {
    # name in C: (layout in Python, members in the order of its fields)
    "endpoint": (EndpointEntry.layout, "interface identity policy flags epoch mac gateway_mac"),
    "ipcache_key": (Prefix.layout, "prefix_bits address"),
    "ipcache_entry": (IpcacheEntry.layout, "identity flags node"),
    "masq_exclude_key": (Prefix.layout, "prefix_bits address"),
    "policy_key": (PolicyMapKey.layout, "prefix_bits policy identity direction protocol port"),
    "policy_entry": (PolicyMapEntry.layout, "precedence cookie proxy_port flags l4_bits"),
    "named_port": (NamedPortKey.layout, "policy cookie address port protocol"),
    "connection_key": (ConnectionKey.layout, "low_address high_address low_port high_port protocol"),
    "connection": (
        Connection.layout,
        "expires epoch flags way[0] way[1] substitute nat_port service_port hop service_address back",
    ),
    "nat_key": (NatKey.layout, "remote_address node_address remote_port node_port protocol"),
    "nat_entry": (NatEntry.layout, "pod_address pod_port flags"),
    "device": (DeviceEntry.layout, "address address6 flags"),
    "l2_answer_key": (layouts.L2AnswerKey.layout, "device address"),
    "l2_answer": (layouts.L2AnswerEntry.layout, "until mac"),
    "service_key": (ServiceKey.layout, "address port protocol"),
    "service": (ServiceEntry.layout, "number backends flags affinity outside"),
    "backend_key": (BackendKey.layout, "service slot"),
    "backend": (BackendEntry.layout, "address port"),
    "node_state": (layouts.NODE_STATE, "epoch seed all services ahead serves"),
    "counter": (Counter.layout, "packets bytes"),
    "event_rate": (EventRate.layout, "window woken lost sent"),
    "choice_key": (ChoiceKey.layout, "client service client_port service_port protocol"),
    "choice": (Choice.layout, "address port substitute epoch"),
    "endpoint_key": (layouts.EndpointKey.layout, "address"),
    "range_key": (layouts.RangeKey.layout, "prefix_bits service address"),
    "affinity_key": (layouts.AffinityKey.layout, "service is_namespace is_local client"),
    "affinity": (layouts.AffinityEntry.layout, "address port used"),
    "living_key": (LivingKey.layout, "service port address"),
    "sock_reverse_key": (SockReverseKey.layout, "cookie address port"),
    "sock_reverse": (SockReverse.layout, "address port protocol is_datagram"),
    "event": (
        records.LAYOUT,
        """at source_identity destination_identity source destination source_port destination_port protocol type reason
        direction policy cookie length line file""",
    ),
}
ONLY_IN_C = {
    "address": layouts.ADDRESS_BYTES,
    "fragment_key": 40,
    "fragment": 8,
}
MAP_STRUCTS = {
    "endpoints": ("endpoint_key", "endpoint"),
    "ipcache": ("ipcache_key", "ipcache_entry"),
    "policy": ("policy_key", "policy_entry"),
    "ct_tcp": ("connection_key", "connection"),
    "ct_any": ("connection_key", "connection"),
    "fragments": ("fragment_key", "fragment"),
    "nat": ("nat_key", "nat_entry"),
    "services": ("service_key", "service"),
    "backends": ("backend_key", "backend"),
    "sock_reverse": ("sock_reverse_key", "sock_reverse"),
    "choices": ("choice_key", "choice"),
    "affinity": ("affinity_key", "affinity"),
    "sock_choices": ("sock_reverse_key", "choice"),
}
CONSTANTS = {
    "ENDPOINT_ENFORCE_INGRESS": layouts.FLAG_ENFORCE_INGRESS,
    "ENDPOINT_ENFORCE_EGRESS": layouts.FLAG_ENFORCE_EGRESS,
    "DEVICE_HAS_PODS": layouts.DEVICE_HAS_PODS,
    "POLICY_DENIES": layouts.POLICY_DENIES,
    "POLICY_NAMED": layouts.POLICY_NAMED,
    "INGRESS": entries.INGRESS,
    "EGRESS": entries.EGRESS,
    "EVENT_DROP": records.DROP,
    "EVENT_POLICY_VERDICT": records.POLICY_VERDICT,
    "EVENT_TRACE": records.TRACE,
    "TICK_SHIFT": layouts.TICK_NS.bit_length() - 1,
    **{"CT_" + name.upper().replace("-", "_"): bit for bit, name in layouts.CT_FLAGS.items()},
    **{"WAY_" + name.upper(): number for number, name in enumerate(layouts.WAYS)},
    "SERVES_OUTSIDE": layouts.SERVES_OUTSIDE,
    "SERVES_ITSELF": layouts.SERVES_ITSELF,
    "NAT_RELAYED": NatEntry.RELAYED,
    "SERVICE_NODE_PORT": ServiceEntry.NODE_PORT,
    "SERVICE_EXTERNAL": ServiceEntry.EXTERNAL,
    "EVENTS_BYTES": limits.limit("EVENTS_BYTES"),
    "COUNTERS_MAX": limits.limit("COUNTERS_MAX"),
    "DROP_POLICY": reasons.POLICY_DENIED,
    "DROP_POLICY_DENY": reasons.POLICY_DENIED_BY_DENYLIST,
}
POLICY_CONSTANTS = {  # policy.h calls into the kernel: its constants are read as text
    "IDENTITY_HOST": RESERVED["host"],
    "IDENTITY_WORLD": RESERVED["world"],
    "IDENTITY_REMOTE_NODE": RESERVED["remote-node"],
    "IDENTITY_KUBE_APISERVER": RESERVED["kube-apiserver"],
    "IDENTITY_CLUSTER_MIN": IDENTITY_MIN,
    "IDENTITY_LOCAL_MIN": IDENTITY_MAX + 1,
    "POLICY_KEY_BITS": layouts.POLICY_STATIC_BITS + entries.FULL_BITS,
}


def declared() -> dict[str, list[str]]:
    """Members by struct, as types.h spells them: "way[2]"; padding, and what is reserved, left out."""
    found = {}
    for name, body in re.findall(
        r"^struct (\w+) \{(.*?)^\};", (INCLUDE / "types.h").read_text(), re.MULTILINE | re.DOTALL
    ):
        members = re.findall(r"^\s*(?:__\w+|struct \w+) (\w+(?:\[\d+\])?);", body, re.MULTILINE)
        found[name] = [each for each in members if not each.startswith(("pad", "reserved"))]
    return found


def fields(layout: struct.Struct) -> list[tuple[int, int]]:
    """(offset, bytes) of each field of a layout."""
    found, at = [], 0
    for repeat, code in re.findall(r"(\d*)([a-zA-Z])", layout.format):
        size = struct.calcsize(f"={repeat}{code}")
        if code != "x":
            assert code == "s" or not repeat
            found.append((at, size))
        at += size
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """What the C compiler makes of types.h: sizes, [offset, bytes] of members, and constants, by expression."""
    wanted = [f"sizeof(struct {name})" for name in (*STRUCTS, *ONLY_IN_C)] + [f"(long)({name})" for name in CONSTANTS]
    for name, (_, members) in STRUCTS.items():
        for member in members.split():
            wanted.append(f"offsetof(struct {name}, {member})")
            wanted.append(f"sizeof(((struct {name} *)0)->{member})")
    folder = tmp_path_factory.mktemp("layouts")
    lines = "\n".join(f'\tprintf("%ld\\n", (long)({each}));' for each in wanted)
    (folder / "print.c").write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/types.h>\n"
        f'#include "limits.h"\n#include "types.h"\n#include "reasons.h"\nint main(void)\n{{\n{lines}\n\treturn 0;\n}}\n'
    )
    subprocess.run(["gcc", f"-I{INCLUDE}", str(folder / "print.c"), "-o", str(folder / "print")], check=True)
    out = subprocess.run([str(folder / "print")], check=True, capture_output=True, text=True).stdout
    return dict(zip(wanted, json.loads(f"[{','.join(out.split())}]"), strict=True))


def test_every_struct_is_known_here() -> None:
    assert set(declared()) == {*STRUCTS, *ONLY_IN_C}


@pytest.mark.parametrize("name", STRUCTS)
def test_every_member_is_where_python_looks_for_it(compiled: dict[str, int], name: str) -> None:
    layout, members = STRUCTS[name]
    assert {each.split("[")[0] for each in members.split()} == {each.split("[")[0] for each in declared()[name]}
    assert compiled[f"sizeof(struct {name})"] == layout.size
    for member, (at, size) in zip(members.split(), fields(layout), strict=True):
        assert compiled[f"offsetof(struct {name}, {member})"] == at, member
        assert compiled[f"sizeof(((struct {name} *)0)->{member})"] == size, member


def test_every_map_has_the_sizes_of_its_structs(compiled: dict[str, int]) -> None:
    for name, size in ONLY_IN_C.items():
        assert compiled[f"sizeof(struct {name})"] == size
    for name, (key, value) in MAP_STRUCTS.items():
        shape = MapShape(compiled[f"sizeof(struct {key})"], compiled[f"sizeof(struct {value})"])
        assert layouts.MAPS[name] == shape, name
    assert set(limits.declared_maps()) == set(layouts.MAPS)
    pinned = re.findall(r"^(?:MAP|BUFFER)\(.*\"(\w+)\"(?:, \w+)?\);", (INCLUDE / "maps.h").read_text(), re.MULTILINE)
    assert sorted(pinned) == sorted(each.file for each in limits.declared_maps().values())


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_agree(compiled: dict[str, int], name: str) -> None:
    assert compiled[f"(long)({name})"] == CONSTANTS[name]


@pytest.mark.parametrize("name", POLICY_CONSTANTS)
def test_identities_agree(name: str) -> None:
    text = "".join((INCLUDE / each).read_text() for each in ("identities.h", "policy.h"))
    found = re.search(rf"^#define {name} (.+?)(?: /\*.*)?$", text, re.MULTILINE)
    assert found is not None
    assert eval(found[1].replace("1u", "1")) == POLICY_CONSTANTS[name]


def test_every_flag_and_way_has_a_name() -> None:
    text = (INCLUDE / "types.h").read_text()
    assert len(re.findall(r"^#define CT_\w+ 0x", text, re.MULTILINE)) == len(layouts.CT_FLAGS)
    assert len(re.findall(r"^#define WAY_\w+ \d", text, re.MULTILINE)) == len(layouts.WAYS)
    assert layouts.DIRECTIONS[entries.INGRESS] == "ingress"
    assert layouts.DIRECTIONS[entries.EGRESS] == "egress"


# reasons.h


def test_every_reason_and_file_has_its_public_name() -> None:
    text = reasons.HEADER.read_text()
    assert len(reasons.reasons()) == len(re.findall(r"^\s*DROP_\w+ = ", text, re.MULTILINE))
    files = {
        reasons.file_name(number) for number in range(1, 1 + len(re.findall(r"^\s*FILE_\w+ = ", text, re.MULTILINE)))
    }
    assert all((INCLUDE / name).exists() or (INCLUDE.parent / "programs" / name).exists() for name in files)
    assert reasons.reason_name(133) == "Policy denied"
    assert reasons.reason_name(181) == "Policy denied by denylist"
    assert reasons.reason_name(0) == "Forwarded"
    assert reasons.reason_name(77) == "77"
    assert reasons.file_name(0) == ""


def test_every_reason_fits_its_counter_and_its_event() -> None:
    [most] = re.findall(r"#define COUNTERS_MAX (\d+)", (INCLUDE / "types.h").read_text())
    assert max(reasons.reasons()) * 2 + 1 < int(most)
    assert max(reasons.reasons()) < 256


# There and back

# "::" says "none" in a map, and no packet bears an IPv4 address in the form of IPv6.
ADDRESSES = st.ip_addresses().map(str).filter(lambda address: address != "::" and not address.startswith("::ffff:"))
NETWORKS = st.one_of(
    st.builds(Prefix, ADDRESSES.filter(lambda address: ":" not in address), st.integers(0, 32)),
    st.builds(Prefix, ADDRESSES.filter(lambda address: ":" in address), st.integers(0, 128)),
)
PORTS = st.integers(0, 65535)
U8, U32 = st.integers(0, 255), st.integers(0, 2**32 - 1)
MACS = st.binary(min_size=6, max_size=6)
Packable = (
    BackendEntry | BackendKey | Connection | ConnectionKey | EndpointEntry | IpcacheEntry | NatEntry | NatKey
    | PolicyMapEntry | PolicyMapKey | Prefix | ServiceEntry | ServiceKey
)  # fmt: skip


@given(
    st.one_of(
        st.builds(EndpointEntry, U32, U32, U32, U32, MACS, MACS, U32),
        NETWORKS,
        st.builds(IpcacheEntry, U32, ADDRESSES, st.booleans()),
        st.builds(PolicyMapKey, U32, U32, st.integers(0, 1), U8, PORTS, st.integers(0, 24)),
        st.builds(PolicyMapEntry, U32, U32, PORTS, st.integers(0, 1), st.integers(0, 24)),
        st.builds(Connection, U32, U32, U32, U8, U8, ADDRESSES, ADDRESSES, PORTS, PORTS, U8),
        st.builds(NatKey, ADDRESSES, ADDRESSES, PORTS, PORTS, U8),
        st.builds(NatEntry, ADDRESSES, PORTS),
        st.builds(ConnectionKey, ADDRESSES, ADDRESSES, PORTS, PORTS, U8),
        st.builds(ServiceKey, ADDRESSES, PORTS, U8),
        st.builds(ServiceEntry, U32, U32),
        st.builds(BackendKey, U32, U32),
        st.builds(BackendEntry, ADDRESSES, PORTS),
    )
)
def test_what_is_packed_reads_back(value: Packable) -> None:
    raw = value.pack()
    assert len(raw) == value.layout.size
    assert type(value).unpack(raw) == value


def test_addresses_and_ports_are_in_network_order() -> None:
    mapped = bytes(10) + bytes([255, 255, 10, 0, 0, 1])
    assert ServiceKey("10.0.0.1", 0x1234, 6).pack() == mapped + bytes([0x12, 0x34, 6, 0])
    assert ConnectionKey("10.0.0.1", "10.0.0.2", 0x1234, 80, 6).pack()[32:36] == bytes([0x12, 0x34, 0, 80])
    assert PolicyMapKey(1, 2, 1, 6, 0x1234, 24).pack()[12:] == bytes([1, 6, 0x12, 0x34])


def test_a_whole_address_and_a_prefix_of_all_its_bits_are_one_key() -> None:
    assert Prefix("10.0.0.1").pack() == Prefix("10.0.0.1", 32).pack()
    assert Prefix("fd00::1").pack() == Prefix("fd00::1", 128).pack()
    assert Prefix.of("10.0.0.0/8").pack()[:4] == (96 + 8).to_bytes(4, "little")
    assert Prefix("10.0.0.1").is_host and not Prefix("fd00::1", 32).is_host


@pytest.mark.parametrize(
    ("name", "key", "words"),
    [
        ("endpoints", layouts.EndpointKey("10.0.1.7"), "10.0.1.7"),
        ("ipcache", layouts.IpcacheKey("10.0.1.7"), "10.0.1.7/32"),
        ("ipcache", layouts.IpcacheKey("fd00::", 64), "fd00::/64"),
        ("masq_exclude", layouts.Prefix.of("10.0.0.0/8"), "10.0.0.0/8"),
        ("services", layouts.ServiceKey("10.96.0.1", 80, 6), "10.96.0.1 port 80/TCP"),
        ("backends", layouts.BackendKey(7, 2), "slot 2 of service 7"),
        ("living", layouts.LivingKey(7, "10.0.1.7", 8080), "backend 10.0.1.7:8080 of service 7"),
        ("named_ports", layouts.NamedPortKey(300, 9, "fd00::7", 80, 17), "[identity 300, [fd00::7]:80/UDP]"),
        ("policy", layouts.PolicyMapKey(300, 301, 0, 6, 80, 24), "[identity 300, ingress, peer 301, TCP, port 80]"),
        ("policy", layouts.PolicyMapKey(300, 301, 1, 0, 0, 0), "[identity 300, egress, peer 301, any, any port]"),
    ],
)
def test_an_entry_is_named_as_people_know_it(name: str, key: Any, words: str) -> None:
    assert layouts.in_words(name, key.pack()) == str(key) == words


def test_every_table_of_a_node_says_what_its_entries_are_called() -> None:
    for table in NodeModel("n").tables:
        key = layouts.MAPS[table.name].key
        assert key is not None and key.__str__ is not object.__str__, table.name


def test_an_entry_that_makes_no_sense_is_named_by_its_bytes() -> None:
    assert layouts.in_words("policy", b"\xff") == "ff"
    assert layouts.in_words("policy", layouts.PolicyMapKey(1, 2, 9, 6, 80, 24).pack()).isalnum()
    assert layouts.in_words("counters", bytes(4)) == "00000000"
