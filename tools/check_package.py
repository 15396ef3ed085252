"""Holds the package to two rules that no other linter holds.

1. No file passes 400 lines, unless a comment near its top gives the reason: `# length: <reason>`.
2. Nothing that runs code found in data: no pickle in any dress (cloudpickle, joblib, `torch.load`), no `eval` or
   `exec`, no `trust_remote_code=True`, no shell, no YAML but the safe kind, and models from safetensors only.
   Names are followed through imports and assignments; one that is put together while the program runs, or comes back
   from a call, is out of its reach.

Usage: python -m tools.check_package src/fleetune
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
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
FORBIDDEN_BRANCHES = ("torch.hub", "torch.package", "transformers.pipeline", "transformers.pipelines")
"""Forbidden with whatever lies below them."""
FORBIDDEN_NAMES = {
    "builtins.compile",
    "builtins.eval",
    "builtins.exec",
    "os.popen",
    "os.system",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "torch.jit.load",
    "torch.load",
    "torch.save",
    "torch.serialization.load",
    "torch.serialization.save",
    "yaml.CFullLoader",
    "yaml.CLoader",
    "yaml.FullLoader",
    "yaml.Loader",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
}
FORBIDDEN_ATTRIBUTES = {
    "CUnsafeLoader",
    "UnsafeLoader",
    "create_subprocess_shell",
    "load_peft_weights",
    "load_state_dict_from_url",
    "read_pickle",
    "subprocess_shell",
    "to_pickle",
}
"""Forbidden whatever they are imported from, or are attributes of."""
SWITCHES = {"allow_pickle": False, "shell": False, "trust_remote_code": False, "weights_only": True}
"""The one value that each may plainly have."""
IMPORTING_CALLS = {"__import__", "builtins.__import__", "importlib.__import__", "importlib.import_module"}
POPEN = dict.fromkeys((f"subprocess.{name}" for name in ("Popen", "call", "check_call", "check_output", "run")), 8)
POSITIONAL_SWITCHES = {
    **{name: ("shell", place) for name, place in POPEN.items()},
    "numpy.load": ("allow_pickle", 2),
    "numpy.save": ("allow_pickle", 2),
    "numpy.lib.format.read_array": ("allow_pickle", 1),
    "read_array": ("allow_pickle", 1),
    "numpy.lib.format.write_array": ("allow_pickle", 3),
    "write_array": ("allow_pickle", 3),
}
"""Switches that may be passed without their names: where."""
YAML_LOADS = {"yaml.load", "yaml.load_all"}
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"}
READS_NO_WEIGHTS = {"transformers.AutoConfig", "transformers.AutoTokenizer"}
SHELL = re.compile(r"(.*[/\\])?(sh|ash|bash|csh|dash|fish|ksh|tcsh|zsh|cmd|powershell|pwsh)(\.exe)?", re.IGNORECASE)
SHELL_COMMAND = re.compile(r"-[a-z]*c|/[ck]|-(enc|encoded|com|command)\w*", re.IGNORECASE)
MOST_MEANINGS = 100


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
    tree = ast.parse(source)
    visitor = _ForbiddenCode()
    # Twice, for a function may use a name that stands for something only further down.
    visitor.visit(tree)
    visitor.visit(tree)
    return [f"{line}: {what}" for line, what in sorted(visitor.found)]


class _ForbiddenCode(ast.NodeVisitor):
    """Collects forbidden code; follows names through imports, assignments and defaults of parameters.

    A name means everything that it stands for anywhere in the file: which of these it is at one place hangs on the way
    that the program takes.
    """

    def __init__(self) -> None:
        self.found: set[tuple[int, str]] = set()
        builtin = ("__import__", "compile", "eval", "exec")
        self.meanings: dict[str, set[str]] = {name: {f"builtins.{name}"} for name in builtin}
        self.roots = {"builtins"}
        self.called: set[ast.AST] = set()

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._check_module(node, alias.name)
            top = alias.name.partition(".")[0]
            self.roots.add(top)
            self._add(alias.asname or top, {alias.name if alias.asname else top})

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        self._check_module(node, module)
        for alias in node.names:
            name = f"{module}.{alias.name}"
            if alias.name == "*":
                self._report(node, f"import of everything in {module}")
            if alias.name in FORBIDDEN_MODULES:
                self._report(node, f"import of {alias.name}")
            self.roots.add(name.partition(".")[0])
            self._add(alias.asname or alias.name, {name})
            self._check_names(node, {name})
            self._check_attribute(node, alias.name)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._check_names(node, self._dotted(node))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._check_names(node, self._dotted(node))
        self._check_attribute(node, node.attr)
        if node.attr == "from_pretrained" and node not in self.called:
            self._check_from_pretrained(node, self._dotted(node.value), None)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self.called.add(node.func)
        called = self._dotted(node.func)
        passed = {keyword.arg: keyword.value for keyword in node.keywords}
        if called & IMPORTING_CALLS and (module := _text(passed.get("name", _at(node.args, 0)))):
            self._check_module(node, module)
        if "getattr" in called and len(node.args) > 1 and (name := _text(node.args[1])):
            owners = self._dotted(node.args[0])
            self._check_names(node, {f"{owner}.{name}" for owner in owners})
            self._check_attribute(node, name)
            if name == "from_pretrained":
                self._check_from_pretrained(node, owners, None)
        for switch, value in passed.items():
            self._check_switch(node, switch, value)
        self._check_sequence(node, node.args)
        self._check_loading(node, called, passed)
        self.generic_visit(node)

    def _check_loading(self, node: ast.Call, called: set[str], passed: Mapping[str | None, ast.expr]) -> None:
        """Reports a call that reads pickles or foreign classes because of what is passed, or is left out."""
        for name in called:
            switch, place = POSITIONAL_SWITCHES.get(name, ("", 0))
            if switch and (value := _at(node.args, place)) is not None:
                self._check_switch(node, switch, value)
        if called & YAML_LOADS:
            loader = passed.get("Loader", _at(node.args, 1))
            meanings = self._dotted(loader) if loader is not None else set()
            if not meanings & FORBIDDEN_NAMES and not (meanings and meanings <= SAFE_LOADERS):
                self._report(node, f"{min(called & YAML_LOADS)} without SafeLoader")
        if isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained":
            self._check_from_pretrained(node, self._dotted(node.func.value), passed.get("use_safetensors"))

    def _check_from_pretrained(self, node: ast.AST, owners: set[str], value: ast.expr | None) -> None:
        safe = isinstance(value, ast.Constant) and value.value is True
        if not safe and not (owners and owners <= READS_NO_WEIGHTS):
            owner = min(owners, default="…")
            self._report(node, f"{owner}.from_pretrained without use_safetensors=True")

    def visit_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            self._check_switch(node, _text(key), value)
        self.generic_visit(node)

    def visit_List(self, node: ast.List) -> None:
        self._check_sequence(node, node.elts)
        self.generic_visit(node)

    def visit_Tuple(self, node: ast.Tuple) -> None:
        self._check_sequence(node, node.elts)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._assign(target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._assign(node.target, node.value)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._assign(node.target, node.value)
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._assign(node.target, node.value)
        self.generic_visit(node)

    def visit_arguments(self, node: ast.arguments) -> None:
        positional = [*node.posonlyargs, *node.args]
        pairs = [*zip(reversed(positional), reversed(node.defaults), strict=False)]
        pairs += [(one, value) for one, value in zip(node.kwonlyargs, node.kw_defaults, strict=True) if value]
        for parameter, value in pairs:
            self._assign(ast.copy_location(ast.Name(parameter.arg, ast.Store()), parameter), value)
        self.generic_visit(node)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        """Notes what a name stands for now, and reports a switch that is set by its name, attribute or key."""
        match target:
            case ast.Name(id=name):
                self._check_switch(target, name, value)
                # Attributes of what is no import say nothing.
                self._add(name, {one for one in self._dotted(value) if one.partition(".")[0] in self.roots})
            case ast.Attribute(attr=name):
                self._check_switch(target, name, value)
            case ast.Subscript(slice=key):
                self._check_switch(target, _text(key), value)
            case ast.Tuple(elts=targets) | ast.List(elts=targets) if isinstance(value, ast.Tuple | ast.List):
                for one, its_value in zip(targets, value.elts, strict=False):
                    self._assign(one, its_value)

    def _add(self, name: str, meanings: set[str]) -> None:
        if meanings and len(self.meanings.get(name, ())) < MOST_MEANINGS:
            self.meanings[name] = self.meanings.get(name, set()) | meanings

    def _dotted(self, node: ast.AST) -> set[str]:
        """Returns the names that an expression may stand for; none where it is no name."""
        if isinstance(node, ast.Name):
            return self.meanings.get(node.id, {node.id})
        if isinstance(node, ast.Attribute):
            return {f"{parent}.{node.attr}" for parent in self._dotted(node.value)}
        if isinstance(node, ast.NamedExpr):
            return self._dotted(node.value)
        if isinstance(node, ast.IfExp):
            return self._dotted(node.body) | self._dotted(node.orelse)
        if isinstance(node, ast.Call) and self._dotted(node.func) & IMPORTING_CALLS:
            module = _text(_at(node.args, 0))
            self.roots |= {module.partition(".")[0]} if module else set()
            return {module} if module else set()
        return set()

    def _check_module(self, node: ast.AST, module: str) -> None:
        if FORBIDDEN_MODULES & set(module.split(".")):
            self._report(node, f"import of {module}")
        self._check_names(node, {module})

    def _check_names(self, node: ast.AST, names: set[str]) -> None:
        for name in names:
            branch = next((one for one in FORBIDDEN_BRANCHES if f"{name}.".startswith(f"{one}.")), None)
            if branch or name in FORBIDDEN_NAMES:
                self._report(node, (branch or name).removeprefix("builtins."))

    def _check_attribute(self, node: ast.AST, name: str) -> None:
        if name in FORBIDDEN_ATTRIBUTES:
            self._report(node, name)

    def _check_sequence(self, node: ast.AST, values: list[ast.expr]) -> None:
        """Reports a shell with a command, and a switch with its value, side by side."""
        for one, following in pairwise(values):
            word = _text(one) or ""
            self._check_switch(node, word, following)
            if SHELL.fullmatch(word) and SHELL_COMMAND.fullmatch(_text(following) or ""):
                self._report(node, f"{word} {_text(following)}")

    def _check_switch(self, node: ast.AST, switch: object, value: ast.expr) -> None:
        # A name or an expression may turn out true, so only the plain value passes.
        allowed = SWITCHES.get(switch) if isinstance(switch, str) else None
        if allowed is not None and not (isinstance(value, ast.Constant) and value.value is allowed):
            self._report(node, f"{switch}={ast.unparse(value)}")

    def _report(self, node: ast.AST, what: str) -> None:
        self.found.add((getattr(node, "lineno", 1), f"{what} is forbidden in the package"))


def _at(values: list[ast.expr], place: int) -> ast.expr | None:
    return values[place] if place < len(values) else None


def _text(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
