"""Requests to a Kubernetes API server. Decides nothing; what goes wrong is a `Trouble`.

kubernetes-asyncio knows how to reach a server and how to prove who we are (kubeconfig, service account, tokens that are
renewed). Its typed objects are not used: they cost 30 times the time, and lose the fields that they do not know. Its
watch is not either: it has no bookmarks and no end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from bus.service import CannotStart
from bus.texts import shortened, visible
from services.resources.kind import Kind

ANSWER_SECONDS = 60.0  # for one answer that is no watch: a page of 500 large pods over a slow link takes 5
CONNECT_SECONDS = 10.0
LONGEST_LINE = 8 * 1024 * 1024  # bytes of one event; etcd keeps no object larger than 1.5 MiB
LONGEST_ANSWER = 256 * 1024 * 1024  # bytes of a list; 10 000 pods in one page are 100 MiB
LONGEST_TEXT = 300  # characters of what a server says is wrong


class Trouble(Exception):
    """The server does not answer, or not with what was asked for. `status` 0: no answer."""

    def __init__(self, text: str, status: int = 0, retry_after_seconds: float = 0.0) -> None:
        super().__init__(shortened(visible(text), LONGEST_TEXT))
        self.status = status
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list."""

    items: list[dict[str, Any]]
    version: str  # resourceVersion of the whole list
    rest: str  # the token that leads on; "": this is the last page


@dataclass(frozen=True, slots=True)
class Event:
    """What a watch says. Of the type ERROR, `object` is a Status."""

    type: str
    object: dict[str, Any]


def root_of(kind: Kind) -> str:
    """Under which an API server has the kind."""
    root = "api" if "/" not in kind.api_version else "apis"
    return f"/{root}/{kind.api_version}"


class Api:
    """A connection. Its methods raise `Trouble`."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def host(self) -> str:
        return str(self._client.configuration.host)

    async def get(self, path: str) -> dict[str, Any]:
        async with self._answer("GET", path) as answer:
            return await _whole(answer)

    async def page(self, path: str, limit: int, rest: str = "") -> Page:
        """A page of a list as the API server's log has it now; `limit` 0: all in one."""
        query = {"limit": str(limit)} if limit else {}
        if rest:
            query["continue"] = rest
        async with self._answer("GET", path, query) as answer:
            found = await _whole(answer)
        meta, items = found.get("metadata"), found.get("items")
        version = meta.get("resourceVersion") if isinstance(meta, dict) else None
        if not isinstance(meta, dict) or not isinstance(version, str) or not version:
            raise Trouble(f"{path}: the list has no resourceVersion")
        if items is None:
            items = []
        if not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
            raise Trouble(f"{path}: the list has no items")
        return Page(items, version, str(meta.get("continue") or ""))

    @asynccontextmanager
    async def watch(self, path: str, version: str, seconds: float) -> AsyncIterator[AsyncIterator[Event]]:
        """What happens after `version`, until the server ends it, which it does after `seconds`.

        A server that has stopped without closing the connection is noticed soon after that.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        async with self._answer("GET", path, query, seconds + CONNECT_SECONDS) as answer:
            yield _events(answer, path)

    async def patch(self, path: str, body: Mapping[str, Any]) -> None:
        """A merge patch."""
        async with self._answer("PATCH", path, body=body):
            pass

    async def create(self, path: str, body: Mapping[str, Any]) -> None:
        async with self._answer("POST", path, body=body):
            pass

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        seconds: float | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Accept": "application/json"}
        if method == "PATCH":
            headers["Content-Type"] = "application/merge-patch+json"
        try:
            answer = await self._asked(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=aiohttp.ClientTimeout(total=seconds or ANSWER_SECONDS, sock_connect=CONNECT_SECONDS),
            )
            async with answer:
                if answer.status >= 300:
                    raise await _refused(answer, path)
                yield answer
        except (TimeoutError, aiohttp.ClientError, OSError) as problem:
            raise Trouble(f"{path}: {str(problem) or 'no answer in time'}") from problem

    async def _asked(self, path: str, method: str, **how: Any) -> aiohttp.ClientResponse:
        try:
            answer: aiohttp.ClientResponse = await self._client.call_api(path, method, **how)
        except (TimeoutError, aiohttp.ClientError, OSError):
            raise
        except Exception as problem:  # the token cannot be renewed, a file of it is empty, and whatever else
            raise Trouble(f"{path}: cannot be asked: {problem!r}") from problem
        return answer


@asynccontextmanager
async def connected(kubeconfig: str) -> AsyncIterator[Api]:
    """A connection by this kubeconfig, or as the service account of the pod that we are.

    Raises: CannotStart: neither can be used.
    """
    from kubernetes_asyncio import client, config  # 0.2 s and 36 MiB: only for who has Kubernetes as the source

    configuration = client.Configuration()
    try:
        if kubeconfig:
            await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
        else:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]  # it has none
        found = client.ApiClient(configuration)
    except Exception as problem:
        where = f"PLEXUS_KUBECONFIG {kubeconfig}" if kubeconfig else "the pod's service account"
        raise CannotStart(f"Kubernetes cannot be reached by {where}: {problem}; set PLEXUS_KUBECONFIG") from problem
    found.user_agent = "plexus-resources"
    async with found:
        yield Api(found)


async def _whole(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    parts, size = [], 0
    async for part in answer.content.iter_any():
        size += len(part)
        if size > LONGEST_ANSWER:
            raise Trouble(f"{answer.url.path}: the answer is longer than {LONGEST_ANSWER >> 20} MiB")
        parts.append(part)
    return _object(b"".join(parts), answer.url.path)


async def _events(answer: aiohttp.ClientResponse, path: str) -> AsyncIterator[Event]:
    """One event a line; a last line that was cut off is none."""
    left = bytearray()
    async for part in answer.content.iter_any():
        left += part
        *lines, rest = left.split(b"\n")
        left = rest
        if len(left) > LONGEST_LINE:
            raise Trouble(f"{path}: an event is longer than {LONGEST_LINE >> 20} MiB")
        for line in lines:
            if line.strip():
                found = _object(line, path)
                kind, what = found.get("type"), found.get("object")
                if not isinstance(kind, str) or not isinstance(what, dict):
                    raise Trouble(f"{path}: an event has no type or no object")
                yield Event(kind, what)


def _object(text: bytes | bytearray, path: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeDecodeError) as problem:
        raise Trouble(f"{path}: the answer is no JSON object: {problem}") from problem


async def _refused(answer: aiohttp.ClientResponse, path: str) -> Trouble:
    body = await answer.content.read(64 * 1024)
    try:
        message = str(msgspec.json.decode(body, type=dict[str, Any]).get("message") or "")
    except (msgspec.DecodeError, RecursionError):
        message = body[:LONGEST_TEXT].decode(errors="replace")
    try:
        wait = max(0.0, float(answer.headers.get("Retry-After", "0")))
    except ValueError:  # a date
        wait = 0.0
    return Trouble(f"{path}: {answer.status} {message or answer.reason}", answer.status, wait)


def error_of(status: Mapping[str, Any], path: str) -> Trouble:
    """A watch's ERROR event."""
    code = status.get("code")
    details = status.get("details")
    wait = details.get("retryAfterSeconds") if isinstance(details, dict) else None
    return Trouble(
        f"{path}: {code} {status.get('message', '')}",
        code if isinstance(code, int) else 500,
        float(wait) if isinstance(wait, (int, float)) else 0.0,
    )
