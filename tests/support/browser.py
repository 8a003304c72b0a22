"""Opens pages in headless Chromium."""

import shutil
import subprocess
from pathlib import Path

from support import programs

CHROMIUM = next(
    (path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path),
    None,
)


def open_page(address: str, profile: Path, *options) -> str:
    """Returns what the browser prints; nothing where it does not end."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--no-proxy-server", "--no-first-run", "--disable-background-networking"]
    command += [
        f"--user-data-dir={profile}",
        "--window-size=1400,1000",
        "--virtual-time-budget=60000",
        *options,
        address,
    ]
    with programs.Program(command) as program:
        try:
            return program.result(timeout_s=400).stdout
        except subprocess.TimeoutExpired:
            return ""
