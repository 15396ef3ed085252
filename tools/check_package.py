"""Holds the package to two rules that no other linter holds.

1. No file passes 400 lines, unless a comment near its top gives the reason: `# length: <reason>`.
2. Nothing that runs code found in data: no pickle in any dress (cloudpickle, joblib, `torch.load`), no `eval` or
   `exec`, no `trust_remote_code=True`, no shell, no YAML but the safe kind, and models from safetensors only.
   A name that is put together while the program runs is out of its reach.

Usage: python -m tools.check_package src/fleetune
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_LINES = 400
REASON_WITHIN_LINES = 20
TEXT_SUFFIXES = {".py", ".html", ".j2", ".jinja", ".css", ".js"}
LENGTH_REASON = re.compile(r"(?:#|//|/\*|<!--|\{#)\s*length:\s*\w+")

FORBIDDEN_MODULES = {
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "jsonpickle",
    "marshal",
    "pickle",
    "pickletools",
    "runpy",
    "shelve",
}
FORBIDDEN_NAMES = {
    "builtins.compile",
    "builtins.eval",
    "builtins.exec",
    "os.popen",
    "os.system",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "torch.hub.load",
    "torch.jit.load",
    "torch.load",
    "torch.save",
    "torch.serialization.load",
    "torch.serialization.save",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
}
FORBIDDEN_ATTRIBUTES = {"read_pickle", "to_pickle"}
FORBIDDEN_SWITCHES = {"allow_pickle", "shell", "trust_remote_code"}
IMPORTING_CALLS = {"__import__", "importlib.import_module"}
NUMPY_LOADS = {"numpy.load", "numpy.lib.format.read_array"}
YAML_LOADS = {"yaml.load", "yaml.load_all"}
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"}
MODEL_CLASS = re.compile(r"(^|\.)AutoModel\w*$")


def main(folders: list[str]) -> int:
    """Prints every broken rule below `folders`; returns 1 if there is one, else 0."""
    files = [file for folder in folders for file in sorted(Path(folder).rglob("*")) if file.suffix in TEXT_SUFFIXES]
    if not files:
        print(f"check_package: no files below {' '.join(folders) or '(no folder given)'}", file=sys.stderr)
        return 1
    problems = [f"{file}:{problem}" for file in files for problem in check_file(file)]
    print("\n".join(problems) if problems else f"check_package: {len(files)} files keep the rules")
    return int(bool(problems))


def check_file(file: Path) -> list[str]:
    """Returns the rules that `file` breaks, each as `line: what`."""
    text = file.read_text(encoding="utf-8")
    problems = list(length_problems(text))
    if file.suffix == ".py":
        problems += forbidden_code(text)
    return problems


def length_problems(text: str) -> Iterator[str]:
    """Yields one problem if `text` is too long and gives no reason for it."""
    lines = text.splitlines()
    if len(lines) > MAX_LINES and not any(map(LENGTH_REASON.search, lines[:REASON_WITHIN_LINES])):
        yield (
            f"1: {len(lines)} lines, {MAX_LINES} are allowed; split the file, "
            "or say near its top why not: # length: <reason>"
        )


def forbidden_code(source: str) -> list[str]:
    """Returns every forbidden import, name and switch in `source`, each as `line: what`."""
    visitor = _ForbiddenCode()
    visitor.visit(ast.parse(source))
    return [f"{line}: {what}" for line, what in sorted(visitor.found)]


class _ForbiddenCode(ast.NodeVisitor):
    """Collects forbidden code; follows names through `import … as …` and `from … import …`."""

    def __init__(self) -> None:
        self.found: set[tuple[int, str]] = set()
        self.imported = {name: f"builtins.{name}" for name in ("compile", "eval", "exec")}

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._check_module(node, alias.name)
            if alias.asname:
                self.imported[alias.asname] = alias.name
            else:
                top = alias.name.partition(".")[0]
                self.imported[top] = top

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        self._check_module(node, module)
        for alias in node.names:
            name = f"{module}.{alias.name}"
            if alias.name == "*":
                self._report(node, f"import of everything in {module}")
            self.imported[alias.asname or alias.name] = name
            self._check_name(node, name)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._check_name(node, self._dotted(node))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._check_name(node, self._dotted(node))
        if node.attr in FORBIDDEN_ATTRIBUTES:
            self._report(node, node.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = self._dotted(node.func)
        first_two = [argument.value if isinstance(argument, ast.Constant) else None for argument in node.args[:2]]
        if called in IMPORTING_CALLS and first_two and isinstance(first_two[0], str):
            self._check_module(node, first_two[0])
        if called == "getattr" and len(first_two) == 2 and isinstance(first_two[1], str):
            self._check_name(node, f"{self._dotted(node.args[0])}.{first_two[1]}")
        for keyword in node.keywords:
            self._check_switch(node, keyword.arg, keyword.value)
        self._check_loading(node, called or "")
        self.generic_visit(node)

    def _check_loading(self, node: ast.Call, called: str) -> None:
        """Reports a call that reads pickles or foreign classes because of what is passed, or is left out."""
        passed = {keyword.arg: keyword.value for keyword in node.keywords}
        if called in NUMPY_LOADS and len(node.args) > 2:
            self._check_switch(node, "allow_pickle", node.args[2])
        if called in YAML_LOADS:
            loader = passed.get("Loader", node.args[1] if len(node.args) > 1 else None)
            if loader is None or self._dotted(loader) not in SAFE_LOADERS:
                self._report(node, f"{called} without SafeLoader")
        owner, _, function = called.rpartition(".")
        if function == "from_pretrained" and MODEL_CLASS.search(owner):
            value = passed.get("use_safetensors")
            if not (isinstance(value, ast.Constant) and value.value is True):
                self._report(node, f"{owner}.from_pretrained without use_safetensors=True")

    def visit_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant):
                self._check_switch(node, key.value, value)
        self.generic_visit(node)

    def _dotted(self, node: ast.AST) -> str | None:
        if isinstance(node, ast.Name):
            return self.imported.get(node.id, node.id)
        if isinstance(node, ast.Attribute) and (parent := self._dotted(node.value)):
            return f"{parent}.{node.attr}"
        return None

    def _check_module(self, node: ast.AST, module: str) -> None:
        if module.partition(".")[0] in FORBIDDEN_MODULES:
            self._report(node, f"import of {module}")

    def _check_name(self, node: ast.AST, name: str | None) -> None:
        if name in FORBIDDEN_NAMES:
            self._report(node, name.removeprefix("builtins."))

    def _check_switch(self, node: ast.AST, switch: object, value: ast.expr) -> None:
        # A name or an expression may turn out true, so only a plain False passes.
        if switch in FORBIDDEN_SWITCHES and not (isinstance(value, ast.Constant) and value.value is False):
            self._report(node, f"{switch}={ast.unparse(value)}")

    def _report(self, node: ast.AST, what: str) -> None:
        self.found.add((getattr(node, "lineno", 1), f"{what} is forbidden in the package"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
