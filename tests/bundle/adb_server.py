"""An ADB server with one phone, whose files lie in a folder, for a real `adb` to talk to.

It speaks what `adb devices`, `adb shell` and `adb push` ask for: the server's own requests, the
shell protocol with exit codes, and the sync protocol. Commands run in this machine's shell.
https://android.googlesource.com/platform/packages/modules/adb: docs/dev/services.md, sync.md,
shell_protocol.h.
"""

from __future__ import annotations

import os
import socketserver
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

VERSION = 41  # of adb's protocol since 2017; with another one adb starts a server of its own
FEATURES = "shell_v2,cmd,stat_v2,ls_v2"
STDOUT, STDERR, EXIT = 1, 2, 3


class AdbServer(socketserver.ThreadingTCPServer):
    """Listens on a free port of this machine.

    Args:
        phone: the phone's root folder. What it is told by files: `devices`, what `adb devices`
            lists; `gone`, that no phone answers any more; `full`, that its storage is.
        serial: of the phone.
    """

    daemon_threads = True

    def __init__(self, phone: Path, serial: str) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.phone, self.serial = phone, serial
        self.requests: list[str] = []
        self.unknown: list[str] = []

    def __enter__(self) -> AdbServer:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.shutdown()
        self.server_close()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Connection(socketserver.StreamRequestHandler):
    server: AdbServer

    def handle(self) -> None:
        while length := self.rfile.read(4):
            request = self.rfile.read(int(length, 16)).decode()
            self.server.requests.append(request)
            if not self._answer(request):
                return

    def _answer(self, request: str) -> bool:
        """Whether the connection goes on: it is the phone's after `host:transport`."""
        of_phone = f"host-serial:{self.server.serial}:"
        transports = (
            f"host:transport:{self.server.serial}",
            f"host:tport:serial:{self.server.serial}",
        )
        gone = (self.server.phone / "gone").exists()
        if request == "host:version":
            self._okay(f"{VERSION:04x}")
        elif request == "host:devices":
            listed = (self.server.phone / "devices").read_text().partition("\n")[2]
            self._okay(listed.strip() + "\n" if listed.strip() else "")
        elif gone and request.startswith("host"):
            self._fail(f"device '{self.server.serial}' not found")
        elif request in ("host:features", "host:host-features", f"{of_phone}features"):
            self._okay(FEATURES)
        elif request in transports:
            self.wfile.write(b"OKAY")
            if "tport" in request:  # the number of the transport follows
                self.wfile.write(struct.pack("<Q", 1))
            return True
        elif request.startswith("shell,v2,"):
            self.wfile.write(b"OKAY")
            self._shell(request.partition(":")[2])
        elif request == "sync:":
            self.wfile.write(b"OKAY")
            self._sync()
        else:
            self.server.unknown.append(request)
            self._fail(f"unknown request {request}")
        return False

    def _okay(self, text: str) -> None:
        self.wfile.write(b"OKAY" + f"{len(text):04x}{text}".encode())

    def _fail(self, text: str) -> None:
        self.wfile.write(b"FAIL" + f"{len(text):04x}{text}".encode())

    def _shell(self, command: str) -> None:
        root = str(self.server.phone)
        done = subprocess.run(
            ["sh", "-c", command.replace("/data/", f"{root}/data/")],
            env=os.environ | {"PATH": f"{root}/bin:{os.environ['PATH']}", "PHONE": root},
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        for kind, text in ((STDOUT, done.stdout), (STDERR, done.stderr)):
            text = text.replace(f"{root}/".encode(), b"/")
            self.wfile.write(struct.pack("<BI", kind, len(text)) + text)
        self.wfile.write(struct.pack("<BIB", EXIT, 1, done.returncode))

    def _sync(self) -> None:
        while head := self.rfile.read(8):
            kind, length = struct.unpack("<4sI", head)
            if kind == b"QUIT":
                return
            given = self.rfile.read(length).decode()
            if kind in (b"STA2", b"LST2"):
                self._stat(kind, self._there(given))
            elif kind == b"SEND":
                self._receive(self._there(given.rpartition(",")[0]))
            else:
                self.server.unknown.append(kind.decode())
                return

    def _there(self, path: str) -> Path:
        return self.server.phone / path.lstrip("/")

    def _stat(self, kind: bytes, file: Path) -> None:
        if not file.exists():
            self.wfile.write(kind + struct.pack("<I", 2) + bytes(64))  # ENOENT
            return
        s = file.stat()
        numbers = (s.st_dev, s.st_ino, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_size)
        times = (int(s.st_atime), int(s.st_mtime), int(s.st_ctime))
        self.wfile.write(kind + struct.pack("<IQQIIIIQqqq", 0, *numbers, *times))

    def _receive(self, file: Path) -> None:
        content = b""
        while True:
            kind, length = struct.unpack("<4sI", self.rfile.read(8))
            if kind == b"DONE":  # the length is the time of the last change
                break
            content += self.rfile.read(length)
        if (self.server.phone / "full").exists():
            text = b"couldn't write: No space left on device"
            self.wfile.write(b"FAIL" + struct.pack("<I", len(text)) + text)
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        if (self.server.phone / "damage").exists():
            file.write_bytes(content + b"x")
        self.wfile.write(b"OKAY" + struct.pack("<I", 0))
