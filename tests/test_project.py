# SPDX-License-Identifier: Apache-2.0
"""The project's papers agree with each other and with the tree."""

import os
import re
import subprocess
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NOT_PACKAGES = {"tests", "benchmarks", "tools", "web", "assets", "locales", "example_workflows"}
MACHINE_PATH = re.compile(
    r"(?<![\w.$}>-])(/(work|home|root|Users|mnt|opt|srv|var/folders)/[A-Za-z0-9._-]+|[A-Z]:\\Users\\)"
)
TEXT = {".py", ".md", ".toml", ".txt", ".json", ".js", ".yml", ".yaml", ".css", ".cfg", ""}


def tracked_files() -> list[Path]:
    """Return the files that git knows or would add; all files where there is no git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        names = listed.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        names = []
        for folder, folders, files in os.walk(ROOT):
            folders[:] = [f for f in folders if f not in (".venv", ".host", ".git", "out")]
            names += [str(Path(folder, file).relative_to(ROOT)) for file in files]
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def packages_in_tree() -> set[str]:
    found = {"graft"}
    for path in tracked_files():
        parts = path.relative_to(ROOT).parts
        if path.name == "__init__.py" and len(parts) > 1 and parts[0] not in NOT_PACKAGES:
            found.add(".".join(("graft", *parts[:-1])))
    return found


def test_requirements_equal_the_dependencies():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert wanted == PROJECT["project"]["dependencies"]


def test_dependencies_have_lower_bounds_only_and_leave_torch_to_the_host():
    for line in PROJECT["project"]["dependencies"]:
        assert not re.search(r"==|<|~=|!=", line), line
        assert not re.match(r"torch(vision|audio)?\b", line), line


def test_the_changelog_has_an_entry_for_this_version():
    version = PROJECT["project"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(version)}\]", text, re.MULTILINE)


def test_the_packages_listed_are_the_packages_there():
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages_in_tree()


def test_every_folder_with_code_is_a_package():
    for path in tracked_files():
        parts = path.relative_to(ROOT).parts
        if path.suffix == ".py" and len(parts) > 1 and parts[0] not in NOT_PACKAGES:
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"


def test_the_registry_accepts_the_project_file():
    comfy, project = PROJECT["tool"]["comfy"], PROJECT["project"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,98}", project["name"])
    assert "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert comfy["PublisherId"]
    assert re.fullmatch(r"(>=|<=|==|>|<)\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert "web" not in comfy  # WEB_DIRECTORY says it; both would load every script twice
    assert (ROOT / project["license"]["file"]).read_text(encoding="utf-8").count("Apache License")


def test_no_machine_paths_in_text_files():
    wrong = []
    for file in tracked_files():
        if file.suffix not in TEXT or file == Path(__file__):
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if MACHINE_PATH.search(line):
                wrong.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert not wrong, "\n".join(wrong)


def test_every_python_file_has_its_licence_line():
    wrong = []
    for file in tracked_files():
        if file.suffix == ".py" and file.stat().st_size:
            first = file.read_text(encoding="utf-8").splitlines()[:2]
            if not any("SPDX-License-Identifier: Apache-2.0" in line for line in first):
                wrong.append(str(file.relative_to(ROOT)))
    assert not wrong, wrong
