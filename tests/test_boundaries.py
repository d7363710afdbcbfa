# SPDX-License-Identifier: Apache-2.0
"""Reads the pack's source and holds the house rules: imports, forbidden calls, node classes, sizes.

Imports run one way: nodes -> host -> trainers, loaders, samplers, metrics -> adapters. Only host/
knows ComfyUI, and only inside functions; only nodes/ knows comfy_api.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_PACK = {"tests", "benchmarks", "tools", "out", "build"}
RANK = {
    "nodes": 3,
    "host": 2,
    "trainers": 1,
    "loaders": 1,
    "samplers": 1,
    "metrics": 1,
    "adapters": 0,
}
FOR_ALL = {
    "registry",
    "plain",
    "keyed",
    "safetensors_header",
}  # root modules that any folder may import
ENTRY = {"__init__", "cli", "__main__"}  # root modules that may import any folder
COMFY = {
    "app",
    "comfy",
    "comfy_api_nodes",
    "comfy_execution",
    "comfy_extras",
    "comfyui_version",
    "execution",
    "folder_paths",
    "latent_preview",
    "main",
    "node_helpers",
    "nodes",
    "protocol",
    "server",
    "utils",
}
POSIX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "posix"}
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "subprocess"}
UNSAFE_CALLS = {
    "breakpoint",
    "compile",
    "eval",
    "exec",
    "input",
    "os.fork",
    "os.popen",
    "os.system",
    "print",
    "signal.alarm",
    "torch.hub.load",
}
NAMELESS = {"utils", "helpers", "common", "misc", "util", "helper"}
MODULE_LINES, FUNCTION_LINES = 400, 50
LIMITS = {"trainers/loop.py": 250}

Found = tuple[str, int, str]


def pack_files() -> list[Path]:
    """Return the Python files that ship."""
    result = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if parts[0] not in NOT_PACK and not any(part.startswith(".") for part in parts):
            result.append(path)
    return result


def check(name: str, source: str) -> list[Found]:
    """Return (rule, line, text) of all that is wrong; ``name`` is the module's path in the pack."""
    tree = ast.parse(source, name)
    parts = Path(name).with_suffix("").parts
    found = [
        *_check_imports(parts, tree),
        *_check_calls(tree),
        *_check_nodes(parts, tree),
        *_check_sizes(name, tree, source),
    ]
    if parts[-1] in NAMELESS:
        found.append(("name", 1, f"a module called {parts[-1]} says nothing"))
    return sorted(found, key=lambda item: item[1])


def _check_imports(parts: tuple[str, ...], tree: ast.Module) -> Iterator[Found]:
    folder = parts[0] if len(parts) > 1 else ""
    deferred = _deferred(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _check_absolute(folder, alias.name, node, deferred)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from _check_absolute(folder, node.module or "", node, deferred)
        elif isinstance(node, ast.ImportFrom):
            yield from _check_relative(parts, folder, node)


def _check_absolute(
    folder: str, module: str, node: ast.stmt, deferred: set[int]
) -> Iterator[Found]:
    top = module.split(".")[0]
    is_pack_folder = top in RANK and top != "nodes"
    if top == "graft" or is_pack_folder:
        yield "relative", node.lineno, f"import {module}: inside the pack imports are relative"
    elif top == "comfy_api":
        if folder != "nodes":
            yield "comfy_api", node.lineno, "only nodes/ imports comfy_api"
    elif top in COMFY:
        if folder != "host":
            yield "comfy", node.lineno, f"import {module}: only host/ knows ComfyUI"
        elif id(node) not in deferred:
            yield "deferred", node.lineno, f"import {module}: host/ imports it inside a function"
    elif top in POSIX_ONLY:
        yield "posix", node.lineno, f"import {module}: not there on Windows"
    elif top in UNSAFE:
        yield "unsafe", node.lineno, f"import {module} is not allowed in the pack"


def _check_relative(parts: tuple[str, ...], folder: str, node: ast.ImportFrom) -> Iterator[Found]:
    package = parts[:-1]
    base = package[: len(package) - (node.level - 1)] if node.level - 1 <= len(package) else None
    if base is None:
        yield "relative", node.lineno, "this import leaves the pack"
        return
    named = tuple((node.module or "").split(".")) if node.module else ()
    for alias in node.names:
        target = (*base, *named, *(() if base or named else (alias.name,)))
        top = target[0]
        if top == folder or top in FOR_ALL:
            continue
        if not folder:
            if parts[-1] not in ENTRY:
                yield "direction", node.lineno, f"{parts[-1]}.py may import only {sorted(FOR_ALL)}"
        elif top not in RANK:
            yield "direction", node.lineno, f"{folder}/ imports the root's {top}"
        elif RANK[top] >= RANK[folder]:
            yield "direction", node.lineno, f"{folder}/ imports {top}/: imports run one way"


def _deferred(tree: ast.Module) -> set[int]:
    """Return the ids of the import statements that do not run when the module is imported."""
    result: set[int] = set()
    for node in ast.walk(tree):
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        is_typing = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if is_function or is_typing:
            result.update(
                id(n) for n in ast.walk(node) if isinstance(n, (ast.Import, ast.ImportFrom))
            )
    return result


def _check_calls(tree: ast.Module) -> Iterator[Found]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in UNSAFE_CALLS:
                yield "call", node.lineno, f"{called}() is not allowed in the pack"
            if called == "torch.load":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if given.get("weights_only") != "True":
                    yield "call", node.lineno, "torch.load() without weights_only=True"
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield "except", node.lineno, "a bare except"
        elif isinstance(node, ast.Assert):
            yield "assert", node.lineno, "assert is stripped by -O: raise an error"


def _check_nodes(parts: tuple[str, ...], tree: ast.Module) -> Iterator[Found]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.alias)):
            name = node.id if isinstance(node, ast.Name) else node.name
            if name in ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS") and parts[0] != "host":
                yield "mappings", node.lineno, f"{name}: then comfy_entrypoint is never called"
        if parts[0] == "nodes" and isinstance(node, ast.ClassDef):
            yield from _check_node_class(node)


def _check_node_class(node: ast.ClassDef) -> Iterator[Found]:
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    if "define_schema" not in methods:
        return
    if [ast.unparse(base) for base in node.bases] != ["io.ComfyNode"]:
        yield "base", node.lineno, f"{node.name} must derive directly from io.ComfyNode"
    if "execute" in methods and methods["execute"].args.kwarg is not None:
        yield "kwargs", methods["execute"].lineno, f"{node.name}.execute takes **kwargs"
    ids = [
        keyword.value
        for call in ast.walk(methods["define_schema"])
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "node_id"
    ]
    literal = [value.value for value in ids if isinstance(value, ast.Constant)]
    if len(literal) != 1 or not str(literal[0]).startswith("Graft"):
        yield (
            "node_id",
            node.lineno,
            f"{node.name} needs one literal node_id that starts with Graft",
        )


def _check_sizes(name: str, tree: ast.Module, source: str) -> Iterator[Found]:
    lines, limit = len(source.splitlines()), LIMITS.get(name, MODULE_LINES)
    if lines > limit:
        yield "size", 1, f"{lines} lines; a module has at most {limit}"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES and node.name != "define_schema":
                text = f"{node.name}() has {length} lines; at most {FUNCTION_LINES}"
                yield "size", node.lineno, text


@pytest.mark.parametrize("path", pack_files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_module_keeps_the_rules(path):
    name = path.relative_to(ROOT).as_posix()
    found = check(name, path.read_text(encoding="utf-8"))
    assert not found, "\n".join(f"{name}:{line}: {text} [{rule}]" for rule, line, text in found)


NODE = """
class Train(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="GraftTrain")
    @classmethod
    def execute(cls, a, b=1): ...
"""


@pytest.mark.parametrize(
    ("name", "source", "rule"),
    [
        ("trainers/loop.py", "from ..host import paths", "direction"),
        ("trainers/loop.py", "from .. import host", "direction"),
        ("trainers/data/cache.py", "def f():\n    from ...loaders import lora", "direction"),
        ("adapters/lora.py", "from ..trainers import loop", "direction"),
        ("host/trainee.py", "from ..nodes import train", "direction"),
        ("registry.py", "from .trainers import loop", "direction"),
        ("trainers/loop.py", "from .... import x", "relative"),
        ("trainers/loop.py", "from graft.adapters import lora", "relative"),
        ("trainers/loop.py", "import adapters", "relative"),
        ("trainers/loop.py", "def f():\n    import comfy.utils", "comfy"),
        ("nodes/train.py", "import folder_paths", "comfy"),
        ("host/trainee.py", "from comfy import sd", "deferred"),
        ("host/trainee.py", "class A:\n    import comfy.sd", "deferred"),
        ("host/trainee.py", "from comfy_api.latest import io", "comfy_api"),
        ("trainers/memory.py", "import resource", "posix"),
        ("loaders/pt.py", "import pickle", "unsafe"),
        ("host/run.py", "from subprocess import run", "unsafe"),
        ("trainers/loop.py", "eval('1')", "call"),
        ("trainers/loop.py", "print('1')", "call"),
        ("loaders/pt.py", "torch.load(x)", "call"),
        ("loaders/pt.py", "torch.load(x, weights_only=False)", "call"),
        ("trainers/loop.py", "try:\n    f()\nexcept:\n    pass", "except"),
        ("trainers/loop.py", "assert x", "assert"),
        ("__init__.py", "NODE_CLASS_MAPPINGS = {}", "mappings"),
        ("nodes/train.py", NODE.replace("io.ComfyNode", "Base"), "base"),
        ("nodes/train.py", NODE.replace("b=1", "**kwargs"), "kwargs"),
        ("nodes/train.py", NODE.replace('"GraftTrain"', "PREFIX + 'Train'"), "node_id"),
        ("nodes/train.py", NODE.replace('"GraftTrain"', "'Train'"), "node_id"),
        ("trainers/utils.py", "", "name"),
        ("trainers/long.py", "x = 1\n" * 401, "size"),
        ("trainers/loop.py", "x = 1\n" * 251, "size"),
        ("trainers/long.py", "def f():\n" + "    x = 1\n" * 50, "size"),
    ],
)
def test_a_broken_rule_is_found(name, source, rule):
    assert [item[0] for item in check(name, source)] == [rule]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("nodes/train.py", "from ..host import train\nfrom ..trainers.loop import x\n" + NODE),
        ("host/trainee.py", "from ..trainers import loop\ndef f():\n    import comfy.sd"),
        ("host/t.py", "if TYPE_CHECKING:\n    from comfy.sd import VAE"),
        ("trainers/data/cache.py", "from ...registry import Registry\nfrom ..random import draw"),
        ("trainers/loop.py", "from ..adapters.lora import LoRA\nfrom .. import registry"),
        ("__init__.py", "def f():\n    from .nodes import EXTENSION"),
        ("nodes/a.py", "def define_schema():\n" + "    x = 1\n" * 60),
    ],
)
def test_what_is_allowed_passes(name, source):
    assert check(name, source) == []


def test_the_standard_library_is_not_shadowed_in_a_rule():
    assert not (COMFY | set(RANK)) & set(sys.stdlib_module_names)
