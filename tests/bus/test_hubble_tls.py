"""Observers over the network: who has a certificate of their authority is answered, and nobody else."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from grpclib.exceptions import GRPCError, StreamTerminatedError

from bus import subjects
from bus.messages.resources import Node
from bus.server import free_port
from bus.service import BadSettings, Service
from bus.service import Settings as BusSettings
from bus.testing import Hub
from lab import certificates
from services.hubble.api import observer_pb2 as api
from services.hubble.nodes import Nodes
from services.hubble.peers import Peer, server_name
from services.hubble.relay import __main__ as relay
from services.hubble.server import ObserverServer
from services.hubble.serving import serve_tcp
from services.hubble.settings import RelaySettings, Settings
from services.hubble.tls import Files, place
from tests.unit.hubble.served import ask, observed

FAILURES = (OSError, GRPCError, StreamTerminatedError, asyncio.TimeoutError)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certificates")
    certificates.make_for_hubble(made, ["node1", "node2"])
    return made


def files(folder: Path, holder: str) -> Files:
    found = certificates.of_hubble(folder, holder)
    return Files.of(found["CA"], found["CERT"], found["KEY"])


async def status(port: int, tls: ssl.SSLContext | None, name: str = "node1") -> api.ServerStatusResponse:
    channel = relay.connect(Peer(name, f"127.0.0.1:{port}", server_name(name) if tls else ""), tls)
    try:
        async with asyncio.timeout(5):
            return await ask(channel, "ServerStatus", api.ServerStatusRequest(), api.ServerStatusResponse)
    finally:
        channel.close()


async def test_who_has_a_certificate_is_answered_and_nobody_else(folder: Path, tmp_path: Path) -> None:
    certificates.make_for_hubble(tmp_path / "strangers", [])
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.load_verify_locations(certificates.of_hubble(folder, "relay")["CA"])
    nobody.set_alpn_protocols(["h2"])
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.load_verify_locations(certificates.of_hubble(folder, "relay")["CA"])
    stranger.load_cert_chain(
        *(certificates.of_hubble(tmp_path / "strangers", "relay")[kind] for kind in ("CERT", "KEY"))
    )
    stranger.set_alpn_protocols(["h2"])
    server = ObserverServer(observed())
    async with serve_tcp("127.0.0.1", port := free_port(), files(folder, "node1").server(), server):
        known = files(folder, "relay").client()
        assert (await status(port, known)).max_flows == 7
        for other in (nobody, stranger, None):
            with pytest.raises(FAILURES):
                await status(port, other)
        with pytest.raises(FAILURES):  # it speaks to node1, and asks for node2
            await status(port, known, "node2")
        assert (await status(port, known)).max_flows == 7


async def test_a_relay_asks_the_nodes_that_the_bus_names(folder: Path) -> None:
    hub, known = Hub(), files(folder, "relay")
    port = free_port()
    settings = RelaySettings(
        hubble_listen_address=f":{port}",
        hubble_tls_ca=known.authority,
        hubble_tls_cert=known.certificate,
        hubble_tls_key=known.key,
    )
    hub.put(subjects.NODE.of("node1"), Node(name="node1", addresses=["127.0.0.1"]))
    hub.put(subjects.NODE.of("gone"), Node(name="gone", addresses=["127.0.0.1"]))
    service = Service("relay", BusSettings(), hub.bus())
    context = known.client()
    nodes = Nodes(lambda peer: relay.connect(peer, context))
    async with serve_tcp("127.0.0.1", port, files(folder, "node1").server(), ObserverServer(observed())):
        hearing = asyncio.create_task(relay.hear(service, nodes, settings))
        while not service.is_ready:
            await nodes.changed.wait()
        assert [each.peer.server_name for each in nodes.all()] == [server_name("gone"), server_name("node1")]
        gone, here = nodes.all()
        request = api.ServerStatusRequest()
        assert await here.ask("ServerStatus", request, api.ServerStatusResponse)
        assert await gone.ask("ServerStatus", request, api.ServerStatusResponse) is None  # another's certificate
        changed = asyncio.create_task(nodes.changed.wait())
        await asyncio.sleep(0)
        hub.delete(subjects.NODE.of("gone"))
        await changed
        assert [each.name for each in nodes.all()] == ["node1"]
        hearing.cancel()
    nodes.close()


def test_tls_without_its_files_is_refused_and_never_left_out(folder: Path, tmp_path: Path) -> None:
    where = {"PLEXUS_NODE": "node1", "PLEXUS_HUBBLE_LISTEN_ADDRESS": ":4244"}
    with pytest.raises(BadSettings, match="PLEXUS_HUBBLE_TLS_CA, _CERT and _KEY"):
        Settings.of(where)
    with pytest.raises(BadSettings, match="PLEXUS_HUBBLE_TLS_CA, _CERT and _KEY"):
        RelaySettings.of({})
    assert Settings.of({"PLEXUS_NODE": "node1"}).hubble_listen_address == ""
    assert Settings.of({**where, "PLEXUS_HUBBLE_TLS": "false"}).files is None
    bad = dict.fromkeys(("CA", "CERT", "KEY"), str(tmp_path / "nothing"))
    with pytest.raises(BadSettings, match="nothing"):
        Settings.of({**where, **{f"PLEXUS_HUBBLE_TLS_{name}": path for name, path in bad.items()}})
    good = certificates.of_hubble(folder, "node1")
    found = Settings.of({**where, **{f"PLEXUS_HUBBLE_TLS_{name}": path for name, path in good.items()}})
    assert found.place == (None, 4244) and found.files is not None
    with pytest.raises(BadSettings, match="PLEXUS_NODE"):
        Settings.of({})


@pytest.mark.parametrize("address", ["", "4244", "host", "host:", ":0", ":70000", "host:x"])
def test_a_place_has_a_port(address: str) -> None:
    with pytest.raises(BadSettings, match='X is "host:port" or ":port"'):
        place("X", address)


def test_a_place_may_be_any_address() -> None:
    assert place("X", ":1") == (None, 1)
    assert place("X", "[::1]:2") == ("::1", 2)
    assert place("X", "192.0.2.1:3") == ("192.0.2.1", 3)
