"""Serves this bundle to browsers: run it, and open the address that it prints.

    python web/serve.py [--port N] [--host HOST] [--certificate PEM]
    python web/serve.py --fetch [--registry URL]

The page in this folder runs the bundle's model in a browser. With --fetch the runtime's npm
packages, which runtime.json pins, are put into web/runtime/ for use without a network. Needs
Python 3.8 and nothing else.
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import io
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tarfile
import urllib.request
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WEB = Path(__file__).resolve().parent
MOST_BYTES = 200 << 20
"""Of a package; those that are pinned have 12 and 33 MB."""


class Handler(SimpleHTTPRequestHandler):
    """Serves the bundle's folder. Its headers isolate the page, so that a browser gives it threads
    and a finer clock."""

    extensions_map = {  # noqa: RUF012
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def do_GET(self) -> None:
        if self.path == "/":
            self.send_response(302)
            self.send_header("Location", "/web/")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *arguments: object) -> None:
        """Say nothing: a page loads some forty files."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve this bundle to browsers.")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="8000; 0: a free one")
    parser.add_argument("--host", default="localhost", help="0.0.0.0: other machines may ask, too")
    parser.add_argument("--certificate", metavar="PEM", help="serve by HTTPS; with its key in it")
    parser.add_argument("--fetch", action="store_true", help="fetch the runtime, and end")
    parser.add_argument(
        "--registry",
        default=os.environ.get("NPM_CONFIG_REGISTRY"),
        metavar="URL",
        help="of npm packages; that of npm, where it is installed",
    )
    arguments = parser.parse_args()
    try:
        if arguments.fetch:
            fetch(arguments.registry or npm_registry())
        else:
            serve(arguments.host, arguments.port, arguments.certificate)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, OverflowError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def serve(host: str, port: int, certificate: str | None) -> None:
    """Serve until the process is ended. A certificate is a file in PEM with its private key."""
    handler = functools.partial(Handler, directory=str(WEB.parent))
    server = ThreadingHTTPServer((host, port), handler)
    scheme = "http"
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        # each request shakes hands in its own thread, so that none can hold up the others
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        scheme = "https"
    name = socket.gethostname() if host == "0.0.0.0" else host
    print(f"{scheme}://{name}:{server.server_address[1]}/web/", flush=True)
    server.serve_forever()


def npm_registry() -> str:
    """Where npm gets its packages on this machine; `ValueError` without npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError("there is no npm, whose registry would be asked: name one by --registry")
    command = [npm, "config", "get", "registry"]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode().strip()


def fetch(registry: str, folder: Path = WEB) -> None:
    """Put the files that runtime.json names into runtime/, out of packages with its digests.

    Raises:
        ValueError: for a package that is not the pinned one, or lacks a file.
        OSError: for a registry that does not answer.
    """
    pins = json.loads((folder / "runtime.json").read_text(encoding="utf-8"))
    for name, package in pins["packages"].items():
        archive = f"{name.split('/')[-1]}-{package['version']}.tgz"
        url = f"{registry.rstrip('/')}/{name}/-/{archive}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                content = answer.read(MOST_BYTES)
        except OSError as error:
            raise OSError(f"{url} does not come: {error}") from None
        if _digest(content, "sha512") != package["integrity"]:
            raise ValueError(f"{url} is not the package that runtime.json pins")
        with tarfile.open(fileobj=io.BytesIO(content)) as files:
            for file, digest in pins["files"].items():
                if file.startswith(f"{name}/"):
                    _unpack(files, file[len(name) + 1 :], digest, folder / "runtime" / file)
        print(f"{name} {package['version']}")


def _unpack(files: tarfile.TarFile, name: str, digest: str, target: Path) -> None:
    member = files.extractfile(f"package/{name}")
    content = member.read() if member else b""
    if _digest(content, digest.partition("-")[0]) != digest:
        raise ValueError(f"{name} is not the file that runtime.json names")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.partial")
    scratch.write_bytes(content)
    scratch.replace(target)


def _digest(content: bytes, algorithm: str) -> str:
    """As a page's `integrity` attribute has it."""
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, content).digest()).decode()}"


if __name__ == "__main__":
    sys.exit(main())
