"""A real Chromium without a screen, spoken to over the pipe of its DevTools protocol.

    with Chromium() as browser:
        page = browser.page(1280, 800)
        page.open("https://127.0.0.1:8443/fleet")
        page.wait("document.title === 'Fleet'", "the page is there")

Blocking on purpose. Certificates are not verified: who the hub is, is no part of what is tested with it. `make deps-ci`
installs Debian's package.
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

DEADLINE_S = 60.0
KEYS = {
    "Enter": 13,
    "Escape": 27,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}
"""Their codes; of others the name is enough."""
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# The pipe is expected at 3 (to the browser) and 4 (from it).
_LAUNCH = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
_OPTIONS = (
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync", "--mute-audio",
    "--ignore-certificate-errors", "--hide-scrollbars", "--force-color-profile=srgb", "--disable-features=Translate,MediaRouter",
    "--no-proxy-server", "about:blank",
)  # fmt: skip


class Chromium:
    """One browser. Each page has storage of its own."""

    def __init__(self) -> None:
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        if program is None:
            pytest.fail("chromium is missing: `make deps-ci` installs it")
        self.root = Path(tempfile.mkdtemp(prefix="chromium-"))
        there_read, self._to = os.pipe()
        self._from, there_write = os.pipe()
        # Clear of 3 and 4, which the launcher is about to overwrite.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (there_read, there_write)]
        with open(self.root / "log", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, *map(str, ends), program, f"--user-data-dir={self.root}/profile", *_OPTIONS],
                pass_fds=ends, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "HOME": str(self.root)},
            )  # fmt: skip
        for fd in (*ends, there_read, there_write):
            os.close(fd)
        self._rest = b""
        self._number = 0
        self._pages: dict[str, Page] = {}

    def page(self, width: int, height: int, *, dark: bool = True) -> "Page":
        context = self.call("Target.createBrowserContext")["browserContextId"]
        made = self.call("Target.createTarget", {"url": "about:blank", "browserContextId": context})
        session = self.call("Target.attachToTarget", {"targetId": made["targetId"], "flatten": True})
        page = self._pages[session["sessionId"]] = Page(self, session["sessionId"])
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        page.scheme(dark=dark)
        return page

    def call(self, method: str, params: dict[str, Any] | None = None, session: str = "") -> Any:
        """The answer to one command. Fails on an error and after DEADLINE_S."""
        self._number += 1
        number = self._number
        message = {
            "id": number,
            "method": method,
            "params": params or {},
            **({"sessionId": session} if session else {}),
        }
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + DEADLINE_S
        while True:
            answer = self._next(deadline, method)
            if answer.get("id") == number:
                if "error" in answer:
                    pytest.fail(f"{method}: {answer['error']}")
                return answer["result"]
            if (page := self._pages.get(answer.get("sessionId", ""))) is not None:
                page.heard(answer.get("method", ""), answer.get("params", {}))

    def _next(self, deadline: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._from, 1 << 20) if ready else b""
            if not data:
                log = (self.root / "log").read_text(errors="replace")[-2000:]
                pytest.fail(f"the browser does not answer {what}: {log}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        os.close(self._to)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._from)
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Page:
    """One tab. `problems`: exceptions of its scripts, and what its console and its security policy complained about."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self._session = session
        self.problems: list[str] = []

    def call(self, method: str, **params: Any) -> Any:
        return self._browser.call(method, params, self._session)

    def heard(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(str(details.get("exception", {}).get("description") or details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(" ".join(str(one.get("value")) for one in params["args"]))

    def open(self, url: str) -> None:
        found = self.call("Page.navigate", url=url)
        assert "errorText" not in found, f"{url}: {found['errorText']}"

    def run(self, expression: str) -> Any:
        """The value of an expression, awaited."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            pytest.fail(f"{expression}: {found['exceptionDetails'].get('exception', {}).get('description')}")
        return found["result"].get("value")

    def wait(self, expression: str, what: str) -> None:
        """Returns once an expression is true; while the page is being loaded it may fail."""
        deadline = time.monotonic() + DEADLINE_S
        guarded = f"(() => {{ try {{ return Boolean({expression}); }} catch (e) {{ return false; }} }})()"
        while True:
            if self.run(guarded):
                return
            if time.monotonic() > deadline:
                text = self.run("document.body.innerText")[:1500]
                pytest.fail(f"not within {DEADLINE_S:g} s: {what}; {self.problems}; {text}")
            select.select([], [], [], 0.03)

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def type(self, selector: str, text: str) -> None:
        """Into a field, in place of what it has, as somebody would who pastes it."""
        self.run(
            f"(() => {{ const f = document.querySelector({json.dumps(selector)}); f.focus(); f.value = '';"
            " f.dispatchEvent(new InputEvent('input', { bubbles: true })); })()"
        )
        if text:
            self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        more = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=KEYS.get(key, 0),
                **more,
            )

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def scheme(self, *, dark: bool) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path
