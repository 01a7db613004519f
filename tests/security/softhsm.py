"""A PKCS #11 token in a directory, as SoftHSM keeps it: real C interface, real library, no hardware.

SoftHSM reads its configuration once per process, so all tests of a process share one, and each has tokens of its own.
"""

import atexit
import itertools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

LIBRARY = "/usr/lib/softhsm/libsofthsm2.so"
PIN = "73915"
_numbers = itertools.count(1)


class Token:
    """`environment`: what processes need that use it; set in this one too."""

    def __init__(self, directory: Path, pin: str = PIN) -> None:
        tool = shutil.which("softhsm2-util")
        if tool is None or not os.path.exists(LIBRARY):
            pytest.fail("SoftHSM is missing: run `make deps-ci`")
        if "SOFTHSM2_CONF" not in os.environ:
            home = Path(tempfile.mkdtemp(prefix="cloudhub-softhsm-"))
            atexit.register(shutil.rmtree, home, ignore_errors=True)
            (home / "tokens").mkdir(mode=0o700)
            (home / "conf").write_text(f"directories.tokendir = {home / 'tokens'}\nlog.level = ERROR\n")
            os.environ["SOFTHSM2_CONF"] = str(home / "conf")
        self.environment = {"SOFTHSM2_CONF": os.environ["SOFTHSM2_CONF"]}
        self.label = f"fleet-{os.getpid()}-{next(_numbers)}"
        self.pin = directory / "pin"
        self.pin.write_text(pin + "\n")
        self.pin.chmod(0o600)
        subprocess.run(
            [tool, "--init-token", "--free", "--label", self.label, "--pin", pin, "--so-pin", "8642"],
            check=True, capture_output=True,
        )  # fmt: skip

    def uri(self, key: str) -> str:
        return f"pkcs11:token={self.label};object={key}?module-path={LIBRARY}&pin-source={self.pin}"
