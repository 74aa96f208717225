"""One HTTP request from wherever this runs, and what came of it. Run inside a pod; imports next to nothing.

    probe.py METHOD ADDRESS PORT PATH SECONDS

Prints the status and the body, or "timed out", "refused", "unreachable". Exit status 0 when there was an answer.
"""

import socket
import sys


def request(method: str, address: str, port: int, path: str, seconds: float) -> tuple[bool, str]:
    """Ask once over a new connection. (it answered, "200 Hostname: webpod1..." or why not)"""
    try:
        with socket.create_connection((address, port), seconds) as connection:
            connection.sendall(f"{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n".encode())
            received = b""
            while part := connection.recv(65536):
                received += part
    except TimeoutError:
        return False, "timed out"
    except ConnectionRefusedError:
        return False, "refused"
    except OSError as error:
        return False, f"unreachable: {error.strerror or error}"
    head, _, body = received.partition(b"\r\n\r\n")
    words = head.split(b"\r\n")[0].split(b" ")
    status = words[1].decode(errors="replace") if len(words) > 1 else "no status"
    return True, f"{status} {body.decode(errors='replace').strip()}"


if __name__ == "__main__":
    answered, text = request(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], float(sys.argv[5]))
    print(text)
    sys.exit(0 if answered else 1)
