"""The API server of these tests, asked by kubectl."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.k8s.apiserver import ApiServer, serving
from tests.k8s.conftest import kubeconfig, until
from tests.k8s.test_source import NODE_ONE, cilium, pod


class Kubectl:
    """The program, with this server as its cluster."""

    def __init__(self, folder: Path, server: ApiServer) -> None:
        self._folder = folder
        self._file = kubeconfig(folder / "kubeconfig", server.url)

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            Path(sys.executable).parent / "kubectl",
            f"--kubeconfig={self._file}",
            f"--cache-dir={self._folder / 'cache'}",
            *words,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def __call__(self, *words: str) -> str:
        process = await self.start(*words)
        told, wrong = await process.communicate()
        assert process.returncode == 0, wrong.decode()
        return told.decode()


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with serving() as found:
        yield found


@pytest.fixture
def kubectl(tmp_path: Path, server: ApiServer) -> Kubectl:
    return Kubectl(tmp_path, server)


async def test_it_lists_in_pages(server: ApiServer, kubectl: Kubectl) -> None:
    for number in range(5):
        server.put(pod(f"web-{number}"))
    told = await kubectl("get", "pods", "-A", "-o", "name", "--chunk-size=2")
    assert told.split() == [f"pod/web-{number}" for number in range(5)]
    assert sum("/api/v1/pods?limit=2" in each or "continue=" in each for each in server.requests) == 3


async def test_it_shows_one_and_of_each_kind(server: ApiServer, kubectl: Kubectl) -> None:
    server.put(NODE_ONE)
    server.put(cilium("ingress: [{}]"))
    assert (await kubectl("get", "node", "node1", "-o", "jsonpath={.status.addresses[0].address}")) == "192.0.2.1"
    assert (await kubectl("get", "ciliumnetworkpolicies", "-o", "name")).strip() == (
        "ciliumnetworkpolicy.cilium.io/rule1"
    )


async def test_it_watches(server: ApiServer, kubectl: Kubectl) -> None:
    watching = await kubectl.start("get", "pods", "-w", "-o", "name")
    assert watching.stdout is not None
    await until(lambda: "pods" in server.watched(), "kubectl watches")
    server.put(pod("web-1"))
    assert (await watching.stdout.readline()).strip() == b"pod/web-1"
    watching.kill()
    await watching.communicate()


async def test_it_patches_a_status(server: ApiServer, kubectl: Kubectl) -> None:
    server.put(cilium("ingress: [{}]"))
    patch = '{"status": {"conditions": [{"type": "Valid", "status": "True"}]}}'
    await kubectl("patch", "ciliumnetworkpolicies", "rule1", "--subresource=status", "--type=merge", "-p", patch)
    assert server.get("CiliumNetworkPolicy", "rule1")["status"]["conditions"][0]["type"] == "Valid"
