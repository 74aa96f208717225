"""The node's CNI socket: each connection is one request, which gets exactly one answer; what it asks is one call of
`cni.Pods`. Frames are described in cni/plexus-cni.c.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bus.telemetry import count, logger
from services.dataplane.pods import cni
from services.dataplane.pods.cni import CniError

log = logger(__name__)

READ_SECONDS = 5.0  # for a request to arrive whole; the executable sends it in one go
WORK_SECONDS = 50.0  # for `Pods` to do it; below the executable's 60, so that our answer is the one that is seen
MAX_CONNECTIONS = 64  # served at once; more wait in the kernel's queue
LOOK_SECONDS = 2.0  # how often it is seen that the socket's file is there
QUEUED_CONNECTIONS = 256
HOPELESS = (
    cni.INCOMPATIBLE_VERSION, cni.INVALID_ENVIRONMENT, cni.UNDECODABLE, cni.INVALID_CONFIGURATION
)  # fmt: skip
"""Asking again would change nothing."""


class Server:
    """Serves `pods` on a unix stream socket for as long as `run` runs.

    Args:
        tell: called with what is wrong with the socket's file, and with "" when nothing is.
    """

    def __init__(self, path: Path, pods: cni.Pods, tell: Callable[[str], None] = lambda _: None) -> None:
        self._path = path
        self._pods = pods
        self._tell = tell
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}  # container id -> its lock and how many want it

    async def run(self) -> None:
        """Until cancelled; the socket then goes, and requests under way are cut off (the runtime asks again).

        What runtimes asked to delete while nobody was here is done before anything else is.
        """
        await self.delete_left()
        listener, inode = _listen(self._path)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    accepting = tasks.create_task(self._accept_all(listener, tasks), name="accept cni requests")
                    await self._until_gone(inode)
                    accepting.cancel()
                    await asyncio.wait([accepting])
                    listener.close()  # nobody can call it any more
                    listener, inode = await self._listen_anew()
        finally:
            listener.close()
            if _is_at(self._path, inode):
                self._path.unlink()

    async def _accept_all(self, listener: socket.socket, tasks: asyncio.TaskGroup) -> None:
        while True:
            await self._free.acquire()
            try:
                connection = await _accept(listener)
            except asyncio.CancelledError:
                self._free.release()
                raise
            task = tasks.create_task(self._serve(connection), name="cni request")
            task.add_done_callback(lambda _: self._free.release())

    async def _until_gone(self, inode: int) -> None:
        """Returns when the socket's file is not ours any more. What was wrong is told until it is seen to be right."""
        while _is_at(self._path, inode):
            await asyncio.sleep(LOOK_SECONDS)
            await self.delete_left()
            if _is_at(self._path, inode):
                self._tell("")

    @property
    def _left(self) -> Path:
        """Where the executable leaves requests to delete when nobody serves the socket."""
        return self._path.with_name(self._path.name + ".deleted")

    async def delete_left(self) -> None:
        """Carry them out, the oldest first; one that fails stays, and is tried again."""
        try:
            self._left.mkdir(mode=0o700, parents=True, exist_ok=True)
            left = sorted(each for each in self._left.iterdir() if each.suffix != ".new")
        except OSError:
            return
        for file in left:
            try:
                payload = file.read_bytes()
            except OSError as failure:
                log.warning("a request to delete cannot be read, trying again", file=str(file), why=str(failure))
                continue
            answer = await self._answer(_at_hand(payload), [])
            if answer.status == 0 or (answer.body or {}).get("code") in HOPELESS:
                file.unlink(missing_ok=True)
                count("cni_left_deleted", result="ok" if answer.status == 0 else "refused")

    async def _listen_anew(self) -> tuple[socket.socket, int]:
        what = f"{self._path} was removed or replaced, so no pod could start"
        while True:
            try:
                made = _listen(self._path)
            except OSError as failure:
                self._tell(f"{what}, and it cannot be made again: make room and give root that directory: {failure}")
                log.error("the cni socket cannot be made again: see why", path=str(self._path), why=str(failure))
                await asyncio.sleep(LOOK_SECONDS)
            else:
                count("drift", kind="file")
                log.warning("the cni socket was gone, and is there again", path=str(self._path))
                self._tell(f"{what}: it is there again; look for who cleans up that directory")
                return made

    async def _serve(self, connection: socket.socket) -> None:
        """One connection, one request, one answer."""
        with connection:
            fds: list[int] = []
            try:
                answer = await self._answer(_receive(connection, fds), fds)
                async with asyncio.timeout(READ_SECONDS):
                    await asyncio.get_running_loop().sock_sendall(connection, answer.frame())
            except (OSError, TimeoutError) as failure:
                log.debug("cni client went away", why=str(failure))
            finally:
                for fd in fds:
                    os.close(fd)

    async def _answer(self, receive: Awaitable[bytes | CniError], fds: list[int]) -> cni.Answer:
        """Raises: OSError: of `receive` alone."""
        payload: bytes | CniError
        try:
            async with asyncio.timeout(READ_SECONDS):
                payload = await receive
        except TimeoutError:
            payload = CniError(cni.IO_FAILURE, f"frame: not whole within {READ_SECONDS:g} s")
        version = "1.0.0"
        verb = ""
        try:
            if isinstance(payload, CniError):
                raise payload
            variables, configuration = cni.split(payload)
            version = cni.asked_version(configuration)
            verb = variables.get("CNI_COMMAND", "")
            request, dns = cni.parse(variables, configuration, fds[0] if fds else None)
            async with asyncio.timeout(WORK_SECONDS):
                answer = await self._do(request, dns)
        except CniError as failure:
            log.warning("cni request refused", verb=verb, code=failure.code, why=failure.message, more=failure.details)
            answer = cni.refused(failure, version)
        except TimeoutError:
            log.warning("cni request took too long", verb=verb)
            code = cni.NOT_AVAILABLE if verb == "STATUS" else cni.TRY_AGAIN
            late = CniError(code, "not done in time: see the dataplane's log, then try again")
            answer = cni.refused(late, version)
        except Exception as failure:  # noqa: BLE001 (one place for all requests: told, counted, logged)
            log.error("cni request failed: report this with the stack below", cause=failure, verb=verb)
            code = cni.NOT_AVAILABLE if verb == "STATUS" else cni.FAILED
            failed = CniError(code, f"{type(failure).__name__}: {failure}", "see the dataplane's log")
            answer = cni.refused(failed, version)
        count(
            "cni_requests",
            verb=verb if verb in cni.VERBS else "invalid",
            result="ok" if answer.status == 0 else "refused",
        )
        return answer

    async def _do(self, request: cni.Request, dns: dict[str, Any]) -> cni.Answer:
        match request:
            case cni.Add():
                async with self._turn(request.attachment.container_id):
                    return cni.added(request, await self._pods.add(request), dns)
            case cni.Delete():
                async with self._turn(request.attachment.container_id):
                    await self._pods.delete(request)
            case cni.Check():
                async with self._turn(request.attachment.container_id):
                    problems = await self._pods.check(request)
                if problems:
                    raise CniError(cni.CHECK_FAILED, problems[0], "; ".join(problems[1:]))
            case cni.Collect():
                await self._pods.collect(request)
            case cni.Status():
                await self._pods.status()
        return cni.Answer(0, None)

    @asynccontextmanager
    async def _turn(self, container_id: str) -> AsyncIterator[None]:
        """One request of a container at a time, in order of arrival."""
        lock, wanted = self._turns.get(container_id, (asyncio.Lock(), 0))
        self._turns[container_id] = (lock, wanted + 1)
        try:
            async with lock:
                yield
        finally:
            lock, wanted = self._turns[container_id]
            if wanted == 1:
                del self._turns[container_id]
            else:
                self._turns[container_id] = (lock, wanted - 1)


def _listen(path: Path) -> tuple[socket.socket, int]:
    """A listening socket at `path` and its inode; what was there before is replaced in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(fresh))
        fresh.chmod(0o600)
        inode = fresh.stat().st_ino
        listener.listen(QUEUED_CONNECTIONS)
        fresh.rename(path)
    except BaseException:
        listener.close()
        raise
    return listener, inode


def _is_at(path: Path, inode: int) -> bool:
    try:
        return path.stat().st_ino == inode
    except OSError:
        return False


async def _at_hand(payload: bytes) -> bytes | CniError:
    if not _is_deletion(payload):
        return CniError(cni.INVALID_ENVIRONMENT, "CNI_COMMAND: only DEL is left for later")
    return payload


def _is_deletion(payload: bytes) -> bool:
    try:
        return cni.split(payload)[0].get("CNI_COMMAND") == "DEL"
    except CniError:
        return False


async def _accept(listener: socket.socket) -> socket.socket:
    """The next connection; when the kernel cannot give one (no file descriptor is left), a little later."""
    while True:
        try:
            return (await asyncio.get_running_loop().sock_accept(listener))[0]
        except OSError as failure:
            log.error("cannot accept CNI requests: raise the limit of open files", why=str(failure))
            await asyncio.sleep(0.2)


async def _receive(connection: socket.socket, fds: list[int]) -> bytes | CniError:
    """The payload of one frame, or what is wrong with it: too long, or ended early.

    The first file descriptor that comes along is added to `fds`, others are closed.
    """
    data = bytearray()
    wanted = 4
    while len(data) < wanted:
        piece = await _read(connection, min(wanted - len(data), 1 << 16), fds)
        if not piece:
            return CniError(cni.IO_FAILURE, f"frame: ended after {len(data)} of {wanted} bytes")
        data += piece
        if len(data) == 4 == wanted:
            wanted += int.from_bytes(data, "little")
            if wanted - 4 > cni.MAX_FRAME_BYTES:
                return CniError(
                    cni.IO_FAILURE, f"frame: {wanted - 4} bytes announced, {cni.MAX_FRAME_BYTES} are the most"
                )
    return bytes(data[4:])


async def _read(connection: socket.socket, size: int, fds: list[int]) -> bytes:
    while True:
        try:
            # Room for one descriptor: the kernel closes any that do not fit.
            piece, came, _, _ = socket.recv_fds(connection, size, 1, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            await _readable(connection)
            continue
        for fd in came:
            if fds:
                os.close(fd)
            else:
                fds.append(fd)
        return piece


async def _readable(connection: socket.socket) -> None:
    """Returns when there is something to read. (asyncio's own reading drops file descriptors.)"""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    descriptor = connection.fileno()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
