"""The bus over TLS, with a real server and certificates made on the spot."""

from __future__ import annotations

import asyncio
import stat
from contextlib import nullcontext
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from bus import subjects
from bus.client import connect
from bus.interface import TurnedAway
from bus.messages.resources import Namespace
from bus.server import ServerSettings, free_port, running
from bus.service import BadSettings, Settings
from bus.telemetry import counted
from bus.tls import ClientTls
from cli.errors import Failed
from cli.session import Session, target, with_session
from lab import certificates
from tests.bus.watcher import watching

HERE = [IPv4Address("127.0.0.1")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    certificates.make(tmp_path / "tls", HERE, ["one", "two"])
    return tmp_path / "tls"


async def gets_nowhere(url: str, tls: ClientTls | None, words: str) -> None:
    """Who cannot wait is told why; who can tries on."""
    with pytest.raises(TurnedAway, match=words):
        async with asyncio.timeout(10), connect(url, name="x", tls=tls, patient=False):
            raise AssertionError


@pytest.mark.parametrize("verify", [False, True])
async def test_what_is_said_over_tls_arrives_and_survives_a_crash_of_the_server(folder: Path, verify: bool) -> None:
    settings = ServerSettings(folder / "nats", port=free_port(), tls=certificates.server(folder, verify=verify))
    one, two = (certificates.client(folder, user, verify=verify) for user in ("one", "two"))
    async with (
        running(settings) as server,
        connect(server.url, name="one", tls=one) as owner,
        connect(server.url, name="two", tls=two) as reader,
        asyncio.timeout(30),
    ):
        box = await owner.own("resources")
        async with watching(reader, subjects.NAMESPACE) as told:
            await box.say(subjects.NAMESPACE.of("a"), Namespace(name="a"))
            await told.until_told(subjects.NAMESPACE.of("a"))
            await server.kill()
            await server.start()
            await box.say(subjects.NAMESPACE.of("b"), Namespace(name="b"))
            await told.until_told(subjects.NAMESPACE.of("b"))


async def test_who_does_not_know_the_bus_or_is_not_known_to_it_gets_nowhere_and_is_told_why(
    folder: Path, tmp_path: Path
) -> None:
    certificates.make(tmp_path / "other", HERE, ["one"])
    settings = ServerSettings(folder / "nats", port=free_port(), tls=certificates.server(folder, verify=True))
    async with running(settings) as server:
        await gets_nowhere(server.url, None, "not one that PLEXUS_BUS_TLS_CA vouches for")  # in the clear
        wrong = certificates.client(tmp_path / "other", "one", verify=True)
        await gets_nowhere(server.url, wrong, "not one that PLEXUS_BUS_TLS_CA vouches for")
        bare = certificates.client(folder, "one", verify=False)
        await gets_nowhere(server.url, bare, "set PLEXUS_BUS_TLS_CERT and PLEXUS_BUS_TLS_KEY")
        strange = ClientTls(str(folder / "authority.crt"), wrong.certificate, wrong.key)
        await gets_nowhere(server.url, strange, "an authority that it does not know")


async def test_a_server_in_the_clear_does_not_talk_a_client_out_of_tls(folder: Path) -> None:
    async with running(ServerSettings(folder / "nats", port=free_port())) as server:
        await gets_nowhere(server.url, certificates.client(folder, "one", verify=False), "it speaks without")


async def test_a_host_that_is_not_in_the_certificate_is_not_the_bus(folder: Path) -> None:
    settings = ServerSettings(folder / "nats", port=free_port(), tls=certificates.server(folder, verify=False))
    async with running(settings) as server:
        tls = certificates.client(folder, "one", verify=False)
        await gets_nowhere(server.url.replace("127.0.0.1", "localhost"), tls, "does not name the host")
        async with asyncio.timeout(10), connect(server.url, name="x", tls=tls):
            pass


async def test_a_service_waits_until_the_bus_has_the_right_certificate_and_says_why(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificates.make(tmp_path / "other", HERE, [])
    wrong, right = (
        ServerSettings(tmp_path / name, port=port, tls=certificates.server(of, verify=False))
        for port in [free_port()]
        for name, of in (("wrong", tmp_path / "other"), ("right", folder))
    )
    before = counted("bus_tls_failed")

    async def arrive() -> None:
        async with connect(right.url, name="x", tls=certificates.client(folder, "one", verify=False)):
            pass

    async with asyncio.timeout(30):
        async with running(wrong):
            arriving = asyncio.create_task(arrive())
            while counted("bus_tls_failed") < before + 2:  # it tries again
                await asyncio.sleep(0.02)
        assert "not one that PLEXUS_BUS_TLS_CA vouches for" in caplog.text
        async with running(right):
            await arriving


def test_the_command_line_says_what_to_do_about_a_bus_that_it_does_not_know(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates.make(tmp_path / "other", HERE, ["one"])
    settings = ServerSettings(folder / "nats", port=free_port(), tls=certificates.server(folder, verify=True))
    monkeypatch.setattr("lab.state.RUN", tmp_path / "no labs")
    monkeypatch.delenv("PLEXUS_LAB", raising=False)
    monkeypatch.setenv("PLEXUS_BUS_URL", settings.url)

    async def ask() -> None:
        async with running(settings):
            await with_session(nothing, target())

    async def nothing(_: Session) -> None: ...

    for user, words in (
        (None, "not one that PLEXUS_BUS_TLS_CA vouches for"),
        (certificates.client(tmp_path / "other", "one", verify=True), "not one that PLEXUS_BUS_TLS_CA vouches for"),
        (certificates.client(folder, "one", verify=False), "set PLEXUS_BUS_TLS_CERT"),
        (ClientTls(str(folder / "gone.crt")), "No such file"),
        (certificates.client(folder, "one", verify=True), ""),
    ):
        files = {"CA": user.authority, "CERT": user.certificate, "KEY": user.key} if user else {}
        for name in ("CA", "CERT", "KEY"):
            monkeypatch.setenv(f"PLEXUS_BUS_TLS_{name}", files.get(name, ""))
        with pytest.raises(Failed, match=words) if words else nullcontext():
            asyncio.run(ask())


def test_keys_are_for_root_alone(folder: Path) -> None:
    keys = list(folder.glob("*.key"))
    assert len(keys) == 4 and {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_settings_that_make_no_tls_are_refused_by_name(folder: Path) -> None:
    authority, certificate, key = (str(folder / name) for name in ("authority.crt", "one.crt", "one.key"))
    taken = Settings.of({"PLEXUS_BUS_TLS_CA": authority, "PLEXUS_BUS_TLS_CERT": certificate, "PLEXUS_BUS_TLS_KEY": key})
    assert taken.bus_tls == ClientTls(authority, certificate, key)
    assert Settings.of({}).bus_tls is None
    for environment, words in (
        ({"PLEXUS_BUS_TLS_CERT": certificate, "PLEXUS_BUS_TLS_KEY": key}, "PLEXUS_BUS_TLS_CA is not set"),
        ({"PLEXUS_BUS_TLS_CA": authority, "PLEXUS_BUS_TLS_CERT": certificate}, "go together"),
        ({"PLEXUS_BUS_URL": "tls://127.0.0.1:4222"}, "set PLEXUS_BUS_TLS_CA"),
        ({"PLEXUS_BUS_TLS_CA": f"{authority}.gone"}, "No such file"),
        ({"PLEXUS_BUS_TLS_CA": key}, "one.key"),
    ):
        with pytest.raises(BadSettings, match=words):
            Settings.of(environment)
