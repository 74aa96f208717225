"""An API server over real HTTP that speaks list and watch as Kubernetes' own does, and fails as that does when told to.

Lists are of one moment, in pages; watches go on from a resourceVersion, with bookmarks; what was compacted is 410 Gone;
statuses are merge-patched against a resourceVersion; kinds can be absent, as those of a CRD that nobody installed. Each
request can be answered with a fault instead. It stores anything: what an object may look like is not its business.

Sources: Kubernetes, "Kubernetes API Concepts"; the behaviour of kube-apiserver 1.36.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import yaml
from aiohttp import web

Name = tuple[str, str]  # (namespace, name)
Object = dict[str, Any]

ROOTS = {
    "/api/v1": (
        "v1",
        {"namespaces": "Namespace", "nodes": "Node", "pods": "Pod", "services": "Service", "events": "Event"},
    ),
    "/apis/discovery.k8s.io/v1": ("discovery.k8s.io/v1", {"endpointslices": "EndpointSlice"}),
    "/apis/networking.k8s.io/v1": ("networking.k8s.io/v1", {"networkpolicies": "NetworkPolicy"}),
    "/apis/cilium.io/v2": (
        "cilium.io/v2",
        {
            "ciliumnetworkpolicies": "CiliumNetworkPolicy",
            "ciliumclusterwidenetworkpolicies": "CiliumClusterwideNetworkPolicy",
            "ciliumcidrgroups": "CiliumCIDRGroup",
            "ciliumloadbalancerippools": "CiliumLoadBalancerIPPool",
        },
    ),
}  # fmt: skip
KIND_OF = {plural: kind for _, kinds in ROOTS.values() for plural, kind in kinds.items()}
PLURAL_OF = {kind: plural for plural, kind in KIND_OF.items()}
API_VERSION_OF = {kind: version for version, kinds in ROOTS.values() for kind in kinds.values()}
CLUSTER_WIDE = (
    "namespaces",
    "nodes",
    "ciliumclusterwidenetworkpolicies",
    "ciliumcidrgroups",
    "ciliumloadbalancerippools",
)

Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class Change:
    version: int
    plural: str
    type: str
    object: Object


@dataclass
class Moment:
    """All that etcd holds."""

    version: int = 100
    objects: dict[str, dict[Name, Object]] = field(default_factory=lambda: {plural: {} for plural in KIND_OF})


class ApiServer:
    """`faults` are asked first, in order; one that answers None lets the request pass. `requests` is what was asked."""

    def __init__(self, port: int = 0) -> None:
        self.now = Moment()
        self.port = port
        self.absent: set[str] = set()
        self.rules: list[Object] | None = None  # of a ClusterRole; None: everything is allowed
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.compacted = 0
        self.most_in_page = 10**9
        self.gone_in_stream = True  # how 410 is told to a watch: as an event, or as the answer's status
        self.is_silent_of_future = False  # to a watch from a version that is not yet: nothing, or 504
        self._history: list[Change] = []
        self._rests: dict[str, tuple[int, list[Object]]] = {}
        self._news = asyncio.Condition()
        self._watches: dict[int, tuple[str, asyncio.Queue[bytes | None], int]] = {}
        self._numbers = count(1)
        self._runner: web.AppRunner | None = None
        self.put("{apiVersion: v1, kind: Namespace, metadata: {name: kube-system, uid: cluster-1}}")
        self.put("{apiVersion: v1, kind: Namespace, metadata: {name: default}}")

    # -- the cluster

    def put(self, text: str | Object) -> Object:
        """Create or change what a manifest says; a new one gets a uid."""
        found: Object = yaml.safe_load(text) if isinstance(text, str) else copy.deepcopy(text)
        plural = PLURAL_OF[found["kind"]]
        meta = found["metadata"]
        if plural not in CLUSTER_WIDE:
            meta.setdefault("namespace", "default")
        name = (meta.get("namespace", ""), meta["name"])
        old = self.now.objects[plural].get(name)
        meta["uid"] = meta.get("uid") or (old["metadata"]["uid"] if old else f"uid-{next(self._numbers)}")
        self._write(plural, name, found, "MODIFIED" if old else "ADDED")
        return found

    def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        plural = PLURAL_OF[kind]
        key = ("" if plural in CLUSTER_WIDE else namespace, name)
        self._write(plural, key, self.now.objects[plural][key], "DELETED")

    def get(self, kind: str, name: str, namespace: str = "default") -> Object:
        plural = PLURAL_OF[kind]
        return self.now.objects[plural]["" if plural in CLUSTER_WIDE else namespace, name]

    def all(self, kind: str) -> list[Object]:
        return list(self.now.objects[PLURAL_OF[kind]].values())

    def patched(self, path: str = "") -> list[str]:
        """Patches of what has this in its path, so far."""
        return [each for each in self.requests if each.startswith("PATCH") and path in each]

    def compact(self) -> None:
        """Forget how it came to be: watches from before now, and rests of lists, are 410."""
        self.compacted = self.now.version
        self._history.clear()
        self._rests.clear()

    def saved(self) -> Moment:
        return copy.deepcopy(self.now)

    def restore(self, moment: Moment) -> None:
        """As from a backup of etcd: an older state, and older numbers."""
        self.now = copy.deepcopy(moment)
        self._history.clear()
        self.compacted = moment.version
        self.end_watches()

    def bookmark(self) -> None:
        for plural, queue, _ in self._watches.values():
            queue.put_nowait(self._line("BOOKMARK", self._bare(plural)))

    def say(self, plural: str, line: bytes) -> None:
        """These very bytes, to whoever watches."""
        for watched, queue, _ in self._watches.values():
            if watched == plural:
                queue.put_nowait(line)

    def end_watches(self) -> None:
        for _, queue, _ in self._watches.values():
            queue.put_nowait(None)

    def watched(self) -> set[str]:
        return {plural for plural, _, _ in self._watches.values()}

    def _write(self, plural: str, name: Name, found: Object, type_: str) -> None:
        self.now.version += 1
        found = copy.deepcopy(found)
        found["metadata"]["resourceVersion"] = str(self.now.version)
        found.setdefault("apiVersion", API_VERSION_OF[found["kind"]])
        if type_ == "DELETED":
            del self.now.objects[plural][name]
        else:
            self.now.objects[plural][name] = found
        self._history.append(Change(self.now.version, plural, type_, found))
        for watched, queue, since in self._watches.values():
            if watched == plural and since < self.now.version:
                queue.put_nowait(self._line(type_, found))

    def _bare(self, plural: str) -> Object:
        return {"kind": KIND_OF[plural], "metadata": {"resourceVersion": str(self.now.version)}}

    @staticmethod
    def _line(type_: str, found: Object) -> bytes:
        return json.dumps({"type": type_, "object": found}).encode() + b"\n"

    # -- HTTP

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            self.end_watches()
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        for fault in list(self.faults):
            answer = await fault(request)
            if answer is not None:
                return answer
        for root, (version, kinds) in ROOTS.items():
            if request.path.startswith(root + "/"):
                words = request.path[len(root) + 1 :].split("/")
                namespace = ""
                if len(words) > 2 and words[0] == "namespaces":
                    namespace, words = words[1], words[2:]
                if words[0] in kinds and words[0] not in self.absent:
                    if not self._is_allowed(request, version.rpartition("/")[0], words[0], words[1:]):
                        return status(403, f"{request.method} {request.path} is forbidden")
                    return await self._resource(request, words[0], namespace, words[1:])
        known = self._discovery().get(request.path.rstrip("/"))
        return web.json_response(known) if known else web.Response(status=404, text="404 page not found\n")

    def _discovery(self) -> dict[str, Object]:
        """What clients ask first: which kinds there are."""
        found: dict[str, Object] = {
            "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.2"},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
        }
        groups = []
        for root, (version, kinds) in ROOTS.items():
            there = {plural: kind for plural, kind in kinds.items() if plural not in self.absent}
            resources = [
                {
                    "name": plural,
                    "singularName": kind.lower(),
                    "namespaced": plural not in CLUSTER_WIDE,
                    "kind": kind,
                    "verbs": ["create", "delete", "get", "list", "patch", "watch"],
                }
                for plural, kind in there.items()
            ]
            found[root] = {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
            if "/" in version and there:
                one = {"groupVersion": version, "version": version.partition("/")[2]}
                groups.append({"name": version.partition("/")[0], "versions": [one], "preferredVersion": one})
        return {**found, "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}}

    def _is_allowed(self, request: web.Request, group: str, plural: str, rest: list[str]) -> bool:
        watched = "watch" if "watch" in request.query else "list"
        verb = {"GET": "get" if rest else watched, "POST": "create", "PATCH": "patch"}.get(request.method, "other")
        resource = "/".join([plural, *rest[1:]])
        return self.rules is None or any(
            group in each["apiGroups"] and resource in each["resources"] and verb in each["verbs"]
            for each in self.rules
        )

    async def _resource(self, request: web.Request, plural: str, namespace: str, rest: list[str]) -> web.StreamResponse:
        match request.method, rest:
            case "GET", []:
                if request.query.get("watch") in ("true", "1"):
                    return await self._watch(request, plural)
                return self._list(request, plural, namespace)
            case "GET", [name] | [name, "status"]:
                found = self.now.objects[plural].get((namespace, name))
                return web.json_response(found) if found else status(404, f'{plural} "{name}" not found')
            case "POST", []:
                found = await request.json()
                if (namespace, found["metadata"]["name"]) in self.now.objects[plural]:
                    return status(409, "AlreadyExists")
                return web.json_response(self.put(found), status=201)
            case "PATCH", [name, "status"]:
                return await self._patch(request, plural, (namespace, name))
        return status(405, "the server does not allow this method")

    def _list(self, request: web.Request, plural: str, namespace: str) -> web.Response:
        token = request.query.get("continue")
        limit = min(int(request.query.get("limit") or self.most_in_page), self.most_in_page)
        if token is not None:
            if token not in self._rests:
                return status(410, "The provided continue parameter is too old")
            version, items = self._rests.pop(token)
        else:
            version = self.now.version
            items = [each for key, each in sorted(self.now.objects[plural].items()) if namespace in ("", key[0])]
        meta: Object = {"resourceVersion": str(version)}
        page, later = items[:limit], items[limit:]
        if later:
            meta["continue"] = f"rest-{next(self._numbers)}"
            meta["remainingItemCount"] = len(later)
            self._rests[meta["continue"]] = version, later
        bare = [{field: value for field, value in each.items() if field not in ("kind", "apiVersion")} for each in page]
        kind = KIND_OF[plural]
        return web.json_response(
            {"kind": f"{kind}List", "apiVersion": API_VERSION_OF[kind], "metadata": meta, "items": bare}
        )

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        if since < self.compacted and not self.gone_in_stream:
            return status(410, "too old resource version")
        if since > self.now.version and not self.is_silent_of_future:
            return status(504, "Timeout: Too large resource version")
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        if since < self.compacted:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await answer.write(self._line("ERROR", gone))
            return answer
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        for change in self._history:
            if change.plural == plural and change.version > since:
                queue.put_nowait(self._line(change.type, change.object))
        number = next(self._numbers)
        self._watches[number] = (plural, queue, since)
        try:
            async with asyncio.timeout(float(request.query.get("timeoutSeconds", "1800"))):
                while (line := await queue.get()) is not None:
                    await answer.write(line)
        except TimeoutError:
            pass
        finally:
            del self._watches[number]
        return answer

    async def _patch(self, request: web.Request, plural: str, key: Name) -> web.Response:
        found = self.now.objects[plural].get(key)
        if found is None:
            return status(404, f'{plural} "{key[1]}" not found')
        if request.content_type != "application/merge-patch+json":
            return status(415, "unsupported media type")
        patch = await request.json()
        wanted = patch.get("metadata", {}).get("resourceVersion")
        if wanted is not None and wanted != found["metadata"]["resourceVersion"]:
            return status(409, "the object has been modified; please apply your changes to the latest version")
        new = copy.deepcopy(found)
        new["status"] = {**new.get("status", {}), **patch.get("status", {})}
        if new != found:
            self._write(plural, key, new, "MODIFIED")
        return web.json_response(self.now.objects[plural][key])


def status(code: int, message: str, retry_after: int = 0) -> web.Response:
    """A failure, as the API tells one."""
    headers = {"Retry-After": str(retry_after)} if retry_after else {}
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return web.json_response(body, status=code, headers=headers)


def failing(code: int, times: int, path: str = "", retry_after: int = 0) -> Fault:
    """The next `times` requests whose path contains `path` fail."""
    left = times

    async def fault(request: web.Request) -> web.StreamResponse | None:
        nonlocal left
        if left <= 0 or path not in request.path_qs:
            return None
        left -= 1
        return status(code, "as the test asked", retry_after)

    return fault


def hanging(path: str) -> Fault:
    """Requests whose path contains `path` are taken, and never answered."""

    async def fault(request: web.Request) -> web.StreamResponse | None:
        if path in request.path_qs:
            await asyncio.Event().wait()
        return None

    return fault


@asynccontextmanager
async def serving() -> AsyncIterator[ApiServer]:
    server = ApiServer()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
