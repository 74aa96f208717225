"""Asks for pages: get.py [-X METHOD] URL... Prints what each answers with; exit status 1 when one does not within two
seconds."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request


def main(arguments: list[str]) -> int:
    method = "GET"
    if arguments[:1] == ["-X"]:
        method, arguments = arguments[1], arguments[2:]
    failed = 0
    for url in arguments:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=2) as answer:
                sys.stdout.write(answer.read().decode(errors="replace"))
        except (OSError, urllib.error.URLError) as problem:
            sys.stdout.write(f"{url}: {problem}\n")
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
