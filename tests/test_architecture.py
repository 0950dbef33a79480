"""The house rules that a machine can check, by `ast`: who may import whom, where each third party lives, what loads
torch, and that nothing prints or swallows errors."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TypeVar, get_args

import pytest

from codetune.project.sections import StageName

Node = TypeVar("Node", bound=ast.AST)
PACKAGE = Path(__file__).resolve().parents[1] / "codetune"
TYPE_NAME = re.compile(r"_?[A-Z]\w*[a-z]\w*")
FILE_NAME = re.compile(r"(?<![\w/.<>])[\w/]+\.(?:py|md)\b")

# Room -> what it may import, rooms by their names below `codetune`. A room is a package or a module.
_NOUNS = ("project", "records", "errors", "text", "user_files", "limits")
_ENGINES = ("selection", "training", "benchmark", "sandbox", "model", "data")
MAY_IMPORT: Mapping[str, tuple[str, ...]] = {
    "": (),
    "errors": (),
    "text": (),
    "user_files": ("errors",),
    "limits": (),
    "records": ("project", "errors"),
    "project": ("errors", "text", "user_files"),
    "console": ("records", "errors", "text"),
    "data": _NOUNS,
    "store": ("", "data", *_NOUNS),
    "launch": ("store", "console", *_NOUNS),
    "model": ("launch", "data", *_NOUNS),
    "selection": ("data", "model", *_NOUNS),
    "training": ("launch", "store", "data", "model", *_NOUNS),
    "sandbox": ("store", "errors"),
    "benchmark": ("sandbox", "store", "data", "model", *_NOUNS),
    "demo": ("store", "data", *_NOUNS),
    "stages": ("", *_ENGINES, "demo", "launch", "store", "console", *_NOUNS),
    "workflow": ("stages", *_ENGINES, "store", "console", *_NOUNS),
    "run_status": ("workflow", "stages", *_ENGINES, "store", "console", *_NOUNS),
    "sweep": ("workflow", "stages", "benchmark", "launch", "store", "console", *_NOUNS),
    "slurm_jobs": ("run_status", "stages", "launch", "store", "console", *_NOUNS),
    "render": ("sweep", "run_status", "workflow", "stages", "console", "text"),
    "demo.run": ("render", "workflow", "stages", "demo", "store", "console", *_NOUNS),
    "cli_options": _NOUNS,
    "report": (
        "",
        "cli_options",
        "sweep",
        "run_status",
        "workflow",
        "stages",
        *_ENGINES,
        "launch",
        "store",
        "console",
        *_NOUNS,
    ),
    "cli_app": ("console", "errors"),
    "cli_inspection": (
        "cli_options",
        "launch",
        "report",
        "cli_app",
        "slurm_jobs",
        "render",
        "run_status",
        "stages",
        "console",
        *_NOUNS,
    ),
    "cli_benchmarks": ("cli_app", "cli_options", "render", "workflow", "stages", "benchmark", "console", *_NOUNS),
    "cli": (
        "",
        "cli_benchmarks",
        "cli_inspection",
        "cli_app",
        "cli_options",
        "demo.run",
        "render",
        "sweep",
        "workflow",
        "stages",
        "benchmark",
        "launch",
        "console",
        *_NOUNS,
    ),
    "main": ("cli", "cli_app", "cli_options", "report", "sweep", "stages", "launch", "console", "errors"),
    "__main__": ("main", "launch"),
}
ROOMS_OF_THEIR_OWN = ("demo.run",)  # the command stands above the workflow, what it is made of stands below
HOMES: Mapping[str, tuple[str, ...]] = {
    "yaml": ("project",),
    "packaging": ("report",),
    "typer": ("cli", "cli_app", "cli_benchmarks", "cli_inspection", "cli_options", "main"),
    "rich": ("console",),
    "pydantic": ("project",),
    "evalplus": ("benchmark",),
    "sklearn": ("selection",),
    "rensa": ("selection",),
    "sentence_transformers": ("model", "selection"),  # the latter knows its type alone
    "accelerate": ("training",),
    "peft": ("model", "training"),
    "datasets": ("data",),
    "pyarrow": ("data",),
    "huggingface_hub": ("data",),
    # The last five know the types of its tokenizers, and stages that of a network.
    "transformers": ("model", "training", "data", "selection", "benchmark", "report", "stages"),
    "tokenizers": ("model", "demo", "data"),  # data copies one, to read control tokens as text
    "psutil": ("benchmark",),
    "vllm": ("model",),
    "deepspeed": ("training",),
    "matplotlib": ("report",),
    "subprocess": ("benchmark", "sandbox", "launch"),
    "pickle": ("benchmark", "sandbox"),  # expected outputs and requests, written by codetune itself
    "fcntl": ("store",),
    "logging": ("launch",),  # to quieten libraries and show control characters; nothing of ours logs
}
# Each says in its docstring, or beside the import, why it imports inside functions.
IMPORT_LATE = (
    "__main__",  # everything, after the handler of an interrupt is set
    "main",
    "cli",
    "cli_benchmarks",
    "cli_inspection",
    "workflow",
    "sweep.outcomes",  # the figures, with scipy
    "sweep.perform",  # the GPUs, with torch
    "demo.run",
    "stages.precision",  # torch, where the project leaves the number format open
    "stages.score",
    "stages.embed",
    "stages.selection_inputs",  # scikit-learn, for strategies that need clusters
    "stages.row_stage",
    "stages.train",
    "stages.generate",
    "stages.sandbox",  # the judge, which runs programs
    "stages.tasks_apart",
    "stages.sanitize",
    "stages.evaluate",
    "stages.likelihood",
    "stages.benchmarks",
    "stages.model_ref",
    "stages.model_card",  # the comparison of models, with scipy
    "launch.dispatch",
    "benchmark.benchmarks",  # evalplus.data, which loads pandas and datasets
    "benchmark.likelihood",  # transformers, which reports and comparisons do without
    "benchmark.evalplus_cut",  # evalplus.sanitize, without evalplus.data
    "model.vllm_engine",  # vllm's settings, an extra
    "training.optimizers",  # bitsandbytes, for its own optimizer
    "training.parallelism",  # deepspeed itself, an extra
    "selection.embed",  # what loads torch, which the hashing encoder does without
    "model.pretrained",  # peft, sentence_transformers and vllm, for the models that need them
    "model.load",  # peft, for the models that have adapters
    "data.source",  # the hub, for data sets that are no files here
    "data.own_template",  # transformers' renderer, for templates that mark what is generated
    "data.files",  # pyarrow itself, for Parquet
    "data.hub",  # datasets itself
    "report.figures",  # matplotlib, an extra
)
ROOMS_WITHOUT_TORCH = (
    "project",
    "store",
    "records",
    "errors",
    "text",
    "user_files",
    "limits",
    "console",
    "cli_options",
    "cli_app",
    "cli_benchmarks",
    "cli_inspection",
    "cli",
    "workflow",
    "slurm_jobs",
    "render",
    "stages",
    "sandbox",
)
MODULES_WITHOUT_TORCH = (
    "launch.environment",
    "launch.workers",
    "launch.dispatch",
    "launch.node_monitor",
    "demo.run",
    "selection.blocks",
    "selection.embed",
    "selection.select",
    "selection.strategies",
    "selection.duplicates",
    "selection.leaks",
    "selection.answer_checks",
    "selection.text_checks",
    "data.chat",
    "data.control_tokens",
    "data.ids",
    "data.packing",
    "data.source",
    "data.files",
    "data.row_formats",
    "data.splits",
    "data.hub",
    "benchmark.benchmarks",
    "benchmark.evalplus_format",
    "benchmark.generate",
    "benchmark.statistics",
    "model.decoding",
    "model.model_files",
    "model.chat_format",
    "model.file_check",
)
# What a program under judgement raises can be anything, and is its own affair; in the sandbox nothing else runs. What a
# worker dies of is told to its command, which knows whether it is the cause. A library raises anything on a broken
# model, panics of Rust code included.
CATCHES_EVERYTHING = (
    "sandbox.program",
    "launch.workers",
    "model.pretrained",
    "data.control_tokens",
    "training.checkpoint",
)
LOADING_METHODS = ("from_pretrained", "from_config", "from_file", "load_adapter")
LOADING_CLASSES = ("SentenceTransformer", "CrossEncoder", "SparseEncoder", "LLM", "AsyncLLM")
LONGEST_FILE, LONGEST_FUNCTION = 420, 50  # lines
LARGE_ROOM = 10  # modules, from which on the docstring of a package says where to find what
MOST_ANY = 120  # words, imports included
TORCH_COMES_WITH = {"torch", "transformers", "accelerate", "peft", "sentence_transformers"}
READS_ENVIRONMENT = (
    "launch.environment",
    "benchmark.benchmarks",
    "benchmark.worker_pool",
    "sandbox.launcher",
)  # an override of EvalPlus; what a child gets of it


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, by its full name, and when it is loaded."""

    name: str
    late: bool  # inside a function
    typing: bool  # below `if TYPE_CHECKING:`
    line: int


def test_every_room_has_its_place_in_the_table() -> None:
    assert {_room(module) for module in _modules()} == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_lies_below_it(room: str) -> None:
    strangers = [
        f"{module}:{found.line} imports {found.name}"
        for module in _modules()
        if _room(module) == room
        for found in _imports(module)
        if found.name.partition(".")[0] == "codetune" and not found.typing
        if (other := _room(_own(found.name))) != room and other not in MAY_IMPORT[room]
    ]
    assert not strangers


def test_the_table_itself_leads_only_downwards() -> None:
    assert list(TopologicalSorter(MAY_IMPORT).static_order())


def test_the_engines_never_import_each_other() -> None:
    engines = {"selection", "training", "benchmark"}
    assert all(not engines & set(MAY_IMPORT[engine]) for engine in engines)


def test_no_module_imports_itself_in_a_circle() -> None:
    below = {
        module: {
            _own(found.name) for found in _imports(module) if found.name.startswith("codetune.") and not found.typing
        }
        for module in _modules()
    }
    assert list(TopologicalSorter(below).static_order())


@pytest.mark.parametrize("library", HOMES)
def test_a_third_party_is_at_home_in_one_room(library: str) -> None:
    users = {
        _room(module) for module in _modules() for found in _imports(module) if found.name.partition(".")[0] == library
    }
    assert users == set(HOMES[library])


def test_the_trainer_of_transformers_is_known_to_training_alone() -> None:
    users = {place.partition(":")[0] for place, name in _names_from("transformers") if name.startswith("Train")}
    assert {_room(module) for module in users} == {"training"}


def test_every_library_loads_models_behind_the_one_door() -> None:
    loaded = {place.partition(":")[0] for place, node in _nodes(ast.Attribute) if node.attr in LOADING_METHODS}
    built = {
        place.partition(":")[0]
        for place, node in _nodes(ast.Call)
        if (name := ast.unparse(node.func).rpartition(".")[2]) in LOADING_CLASSES or name.startswith("AutoPeft")
    }
    assert loaded == {"model.pretrained"}
    assert built == {"model.pretrained"}


def test_imports_inside_functions_stand_only_where_they_are_granted() -> None:
    late = {module for module in _modules() if any(found.late and not found.typing for found in _imports(module))}
    assert late == set(IMPORT_LATE)


def test_torch_is_not_loaded_on_the_way_to_help_and_errors() -> None:
    light = [module for module in _modules() if _room(module) in ROOMS_WITHOUT_TORCH or module in MODULES_WITHOUT_TORCH]
    assert set(MODULES_WITHOUT_TORCH) <= set(light)
    assert not [module for module in light if _loaded_with(module) & TORCH_COMES_WITH]


def test_the_command_line_is_loaded_without_anything_heavy() -> None:
    heavy = ("torch", "transformers", "datasets", "sklearn", "evalplus", "numpy")
    program = f"import sys, codetune.cli; print(*[name for name in {heavy!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_what_every_command_shows_is_loaded_without_the_engines_of_the_stages() -> None:
    heavy = ("torch", "transformers", "datasets", "sklearn", "scipy", "pandas")
    program = f"import sys, codetune.render; print(*[name for name in {heavy!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_no_stage_name_is_compared_as_text_outside_the_stages() -> None:
    names = set(get_args(StageName))
    compared = [
        f"{place} compares {constant.value!r}"
        for place, node in _nodes(ast.Compare)
        if not place.startswith("stages.")
        for part in (node.left, *node.comparators)
        for constant in ast.walk(part)
        if isinstance(constant, ast.Constant) and constant.value in names
    ]
    assert not compared


def test_a_type_name_stands_in_one_module_only() -> None:
    homes: dict[str, set[str]] = {}
    for place, node in _nodes(ast.ClassDef):
        homes.setdefault(node.name.lstrip("_"), set()).add(place.partition(":")[0])
    for module in _modules():  # aliases and type variables too, but for those of one letter
        for node in _tree(module).body:
            for name in ast.walk(node) if isinstance(node, ast.Assign | ast.AnnAssign) else ():
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store) and TYPE_NAME.fullmatch(name.id):
                    homes.setdefault(name.id.lstrip("_"), set()).add(module)
    assert not {name: modules for name, modules in homes.items() if len(modules) > 1}


def test_nothing_prints() -> None:
    assert not [
        place for place, node in _nodes(ast.Call) if isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def test_no_error_is_caught_that_is_not_named() -> None:
    broad = {"Exception", "BaseException"}
    assert not [
        place
        for place, node in _nodes(ast.ExceptHandler)
        if place.partition(":")[0] not in CATCHES_EVERYTHING
        if node.type is None or broad & {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
    ]


def test_the_environment_is_read_in_one_place_and_the_adapters_that_exist_for_it() -> None:
    users = {
        place.partition(":")[0] for place, node in _nodes(ast.Attribute) if node.attr in ("environ", "getenv", "putenv")
    }
    assert users == set(READS_ENVIRONMENT)
    assert not [place for place, name in _names_from("os") if name in ("environ", "getenv", "putenv")]


def test_a_file_is_read_at_one_sitting() -> None:
    lengths = {module: len(_path(module).read_text(encoding="utf-8").splitlines()) for module in _modules()}
    assert not {module: lines for module, lines in lengths.items() if lines > LONGEST_FILE}


def test_a_function_is_read_at_one_glance() -> None:
    functions = [found for kind in (ast.FunctionDef, ast.AsyncFunctionDef) for found in _nodes(kind)]
    lengths = {f"{place} {node.name}": (node.end_lineno or 0) - node.lineno + 1 for place, node in functions}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION}


def test_every_module_opens_with_what_it_is_for() -> None:
    silent = [module for module in _modules() if not ast.get_docstring(_tree(module)) and _path(module).name[0] != "_"]
    assert not silent


def test_a_large_room_names_its_modules_at_its_door() -> None:
    for room in _packages():
        modules = {module.rpartition(".")[2] for module in _modules() if module.startswith(f"{room}.")}
        named = set(re.findall(r"\w+", ast.get_docstring(_tree(room)) or ""))
        assert len(modules) < LARGE_ROOM or modules <= named, (room, modules - named)


def test_any_stands_only_where_libraries_json_and_untrusted_programs_give_values() -> None:
    counts = {module: sum(name == "Any" for name in _tokens(module, tokenize.NAME)) for module in _modules()}
    assert sum(counts.values()) < MOST_ANY, sorted(counts.items(), key=lambda item: -item[1])[:8]


def test_every_file_that_a_docstring_or_comment_names_exists() -> None:
    files = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.suffix in (".py", ".md")]
    named = {(module, name) for module in _modules() for text in _prose(module) for name in FILE_NAME.findall(text)}
    assert not [(module, name) for module, name in named if not any(f"/{file}".endswith(f"/{name}") for file in files)]


def _prose(module: str) -> Iterator[str]:
    """The docstrings and comments of a module."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
    yield from _tokens(module, tokenize.COMMENT)


def _tokens(module: str, kind: int) -> Iterator[str]:
    with tokenize.open(_path(module)) as source:
        yield from (token.string for token in tokenize.generate_tokens(source.readline) if token.type == kind)


@cache
def _modules() -> tuple[str, ...]:
    """Every module below `codetune`, dotted; the package itself is ""."""
    return tuple(sorted(_dotted(path) for path in PACKAGE.rglob("*.py")))


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def _path(module: str) -> Path:
    base = PACKAGE.joinpath(*module.split(".")) if module else PACKAGE
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_path(module).read_text(encoding="utf-8"))


def _own(name: str) -> str:
    """The module below `codetune` that a full name lies in: a function's module, a package itself."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in _modules():
        parts.pop()
    return ".".join(parts)


def _room(module: str) -> str:
    return module if module in ROOMS_OF_THEIR_OWN else module.partition(".")[0]


@cache
def _imports(module: str) -> tuple[Import, ...]:
    return tuple(_walk_imports(_tree(module), False, False))


def _walk_imports(node: ast.AST, late: bool, typing: bool) -> Iterator[Import]:
    late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    typing = typing or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, late, typing, node.lineno) for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"relative import in line {node.lineno}"
        # `from codetune import console` imports a module: the names below the package are told by the caller.
        whole = node.module in ("codetune", *(f"codetune.{package}" for package in _packages()))
        names = [f"{node.module}.{alias.name}" for alias in node.names] if whole else [node.module or ""]
        yield from (Import(name, late, typing, node.lineno) for name in names)
    for child in ast.iter_child_nodes(node):
        yield from _walk_imports(child, late, typing)


@cache
def _packages() -> frozenset[str]:
    return frozenset(_dotted(path) for path in PACKAGE.rglob("__init__.py")) - {""}


def _loaded_with(module: str) -> set[str]:
    """Third parties that importing `module` loads, through any of our own modules."""
    libraries: set[str] = set()
    seen, waiting = set(), [module]
    while waiting:
        at = waiting.pop()
        seen.add(at)
        for found in _imports(at):
            if found.late or found.typing:
                continue
            if found.name.partition(".")[0] != "codetune":
                libraries.add(found.name.partition(".")[0])
            elif _own(found.name) not in seen:
                waiting.append(_own(found.name))
    return libraries


def _names_from(library: str) -> Iterator[tuple[str, str]]:
    """Each name that is imported from a library, with its place."""
    for place, node in _nodes(ast.ImportFrom):
        if (node.module or "").partition(".")[0] == library:
            yield from ((place, alias.name) for alias in node.names)


def _nodes(kind: type[Node]) -> Iterator[tuple[str, Node]]:
    for module in _modules():
        for node in ast.walk(_tree(module)):
            if isinstance(node, kind):
                yield f"{module}:{getattr(node, 'lineno', 0)}", node
