"""The rules of the package, and that the check of them catches a bad file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fleetune
from tools.check_package import MAX_LINES, check_file, forbidden_code, main

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "fleetune"

# Help, `init` and mistakes in a recipe must answer at once, so none of these may be imported for them.
SLOW_IMPORTS = ["torch", "transformers", "peft", "pandas", "altair", "sklearn", "scipy", "pyarrow", "datasets"]
QUICK_MODULES = [
    "fleetune",
    "fleetune.cli.app",
    "fleetune.cli.entry",
    "fleetune.data.config",
    "fleetune.engine.config",
    "fleetune.lab.recipe",
    "fleetune.methods",
    "fleetune.metrics",
]

DISTRIBUTIONS = {"markupsafe": "jinja2", "sklearn": "scikit-learn", "vl_convert": "vl-convert-python"}
USED_WITHOUT_IMPORT = {"tokenizers"}  # by transformers, for every fast tokenizer


def test_the_package_keeps_the_rules():
    assert main([str(PACKAGE)]) == 0


def test_a_folder_without_files_is_an_error(tmp_path):
    assert main([str(tmp_path)]) == 1


@pytest.mark.parametrize(
    ("lines", "top", "kept"),
    [
        (MAX_LINES, "", True),
        (MAX_LINES + 1, "", False),
        (MAX_LINES + 1, "# length: the table of architectures is one thing", True),
        (MAX_LINES + 1, "# length:", False),
    ],
)
def test_a_long_file_needs_a_reason(tmp_path, lines, top, kept):
    file = tmp_path / "long.py"
    file.write_text(top + "\n" + "x = 1\n" * (lines - 1))
    assert (check_file(file) == []) == kept


def test_a_reason_far_down_does_not_count(tmp_path):
    file = tmp_path / "long.py"
    file.write_text("x = 1\n" * MAX_LINES + "# length: too late\n")
    assert check_file(file)


def test_a_long_template_needs_a_reason_too(tmp_path):
    file = tmp_path / "page.html"
    file.write_text("<p>\n" * (MAX_LINES + 1))
    assert check_file(file)
    file.write_text("<!-- length: one page, one file -->\n" + "<p>\n" * MAX_LINES)
    assert check_file(file) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    import pickle as p",
        "from pickle import loads",
        "import cloudpickle",
        "import joblib",
        "from joblib import load",
        "import importlib\nimportlib.import_module('pickle')",
        "__import__('pickle')",
        "import torch\ntorch.load('x.pt')",
        "import torch as t\nload = t.load",
        "from torch import load",
        "import torch.serialization\ntorch.serialization.load('x')",
        "import torch\ngetattr(torch, 'load')('x')",
        "import torch\ntorch.save({}, 'x.pt')",
        "import pandas as pd\npd.read_pickle('x')",
        "import numpy as np\nnp.load('x.npy', allow_pickle=True)",
        "eval('1')",
        "run = exec",
        "import builtins\nbuiltins.eval('1')",
        "load(path, trust_remote_code=True)",
        "load(path, trust_remote_code=flag)",
        "load(path, **{'trust_remote_code': True})",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import os\nos.system('ls')",
        "import os as o\nrun = o.popen",
        "from os import system as run",
        "from subprocess import getoutput",
        "import dill",
        "import shelve as s",
        "from marshal import loads as read",
        "import pickle as p",
        "from joblib import load as read",
        "import runpy",
        "compile(text, 'x', 'exec')",
        "from torch import load as read",
        "from torch import *",
        "import numpy as np\nnp.load('x.npy', None, True)",
        "from numpy import load\nload('x.npy', allow_pickle=True)",
        "import yaml\nyaml.load(text)",
        "import yaml as y\ny.load(text, Loader=y.FullLoader)",
        "from yaml import load\nload(text, object())",
        "from yaml import unsafe_load",
        "import transformers\ntransformers.AutoModel.from_pretrained(folder)",
        "from transformers import AutoModelForCausalLM as A\nA.from_pretrained(folder, use_safetensors=False)",
        "from transformers import AutoModel\nAutoModel.from_pretrained(folder, use_safetensors=wish)",
    ],
)
def test_code_that_runs_what_data_says_is_caught(source):
    assert len(forbidden_code(source)) == 1


LONG_POPEN = "x, -1, None, None, None, None, None, True, True"


@pytest.mark.parametrize(
    "source",
    [
        "from pandas import read_pickle",
        "from pandas.io.pickle import read_pickle as rp",
        "from pandas.io import pickle",
        "from transformers import BertModel\nBertModel.from_pretrained(f)",
        "from transformers import AutoModel\ncls = AutoModel\ncls.from_pretrained(f)",
        "from transformers import AutoModel as AutoConfig\nAutoConfig.from_pretrained(f)",
        "from transformers import AutoModel\nread = AutoModel.from_pretrained\nread(f)",
        "from transformers import AutoModel\ngetattr(AutoModel, 'from_pretrained')(f)",
        "from transformers import pipeline\npipeline('text-classification', f)",
        "import transformers as t\nt.pipeline('text-classification')",
        "import peft\npeft.load_peft_weights(f)",
        "from peft.utils.save_and_load import load_peft_weights as read",
        "options['trust_remote_code'] = True",
        "config.trust_remote_code = True",
        "a, options['shell'] = 1, True",
        "options.setdefault('trust_remote_code', True)",
        "setattr(config, 'trust_remote_code', True)",
        "def f(x, trust_remote_code=True): ...",
        "def f(x, *, trust_remote_code: bool = True): ...",
        "class A:\n    trust_remote_code: bool = True",
        "run = lambda x, shell=True: x",
        "import torch\ntorch.hub.load_state_dict_from_url(u)",
        "import torch\ntorch.package.PackageImporter(f)",
        "from torch import package",
        "import torch.package",
        "import torch\nt = torch\nt.load(x)",
        "import torch\ndef f(t=torch): t.load(x)",
        "import torch\n(t := torch).load(x)",
        "def f():\n    t.load(x)\nimport torch\nt = torch",
        "import importlib\nt = importlib.import_module('torch')\nt.load(x)",
        "model.load_state_dict(state, weights_only=False)",
        "options = {'weights_only': flag}",
        "from numpy.lib.format import read_array\nread_array(f, True)",
        "import numpy as np\nnp.lib.format.read_array(f, True)",
        "import yaml\nyaml.UnsafeLoader(text).get_data()",
        "from yaml.loader import UnsafeLoader",
        "import asyncio\nasyncio.create_subprocess_shell(c)",
        "from asyncio import create_subprocess_shell as run",
        "import subprocess\nsubprocess.run(['sh', '-c', x])",
        "import subprocess\nsubprocess.run(('/bin/bash', '-lc', x))",
        "import os\nos.execlp('sh', 'sh', '-c', x)",
        f"import subprocess\nsubprocess.Popen({LONG_POPEN})",
        f"from subprocess import run\nrun({LONG_POPEN})",
        "from importlib import import_module\nimport_module(name='pickle')",
        "__import__(name='pickle')",
    ],
)
def test_other_ways_to_the_same_are_caught(source):
    assert forbidden_code(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "options['trust_remote_code'] = False",
        "def f(x, trust_remote_code=False): ...",
        "model.load_state_dict(state, strict=False)",
        "torch_load(x, weights_only=True)",
        "import subprocess\nsubprocess.run(['ls', '-c'])",
        "import torch\nt = torch\nt.zeros(3)",
        "from transformers import BertModel\nBertModel.from_pretrained(folder, use_safetensors=True)",
        "from transformers import AutoConfig\nAutoConfig.from_pretrained(folder)",
        "'pickle and torch.load are forbidden'",
        "from safetensors.torch import load_file\nload_file('x')",
        "import json\njson.load(file)",
        "import numpy as np\nnp.load('x.npy', allow_pickle=False)",
        "load(path, trust_remote_code=False)",
        "import subprocess\nsubprocess.run(['ls'])",
        "import re\nre.compile('x')",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import yaml\nyaml.safe_load(text)",
        "from transformers import AutoModel\nAutoModel.from_pretrained(folder, use_safetensors=True)",
        "from transformers import AutoTokenizer\nAutoTokenizer.from_pretrained(folder)",
    ],
)
def test_innocent_code_passes(source):
    assert forbidden_code(source) == []


def test_the_check_names_file_and_line(tmp_path, capsys):
    (tmp_path / "bad.py").write_text("x = 1\nimport pickle\n")
    assert main([str(tmp_path)]) == 1
    assert "bad.py:2: import of pickle" in capsys.readouterr().out


@pytest.mark.parametrize("module", QUICK_MODULES)
def test_help_and_recipe_errors_import_nothing_slow(module):
    script = f"import sys, {module}\nprint(*(name for name in {SLOW_IMPORTS} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_version_is_the_same_everywhere():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == fleetune.__version__


def test_each_dependency_is_declared_and_used():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = {distribution(requirement) for requirement in project["dependencies"]}
    optional = {distribution(one) for extra in project["optional-dependencies"].values() for one in extra}
    imported = {DISTRIBUTIONS.get(module, distribution(module)) for module in third_party_imports()}
    assert imported - base - optional == set()
    assert base - imported - USED_WITHOUT_IMPORT == set()


def distribution(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return match[0].replace("_", "-").lower()


def third_party_imports() -> set[str]:
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"fleetune"}
