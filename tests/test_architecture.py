"""Who imports whom: the rules by which a newcomer finds the file for a change. Read from the source, nothing is run."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "facedepth_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# A library has one home: the files (or folders, with a slash) that may import it.
HOMES = {
    "orbax": ["checkpoint.py"],
    "safetensors": ["weight_files.py"],
    "grain": ["data/pipeline.py"],
    "cv2": ["data/", "export.py", "faces.py", "photos.py", "pictures.py", "estimator.py", "predict.py"],
    "flax": ["models/", "state.py", "estimator.py"],
    "optax": ["state.py", "losses.py"],
    "absl": ["main.py", "config.py"],
    "ml_collections": ["config.py", "train.py"],
    "tensorboardX": ["logs.py"],
    "PIL": ["photos.py"],
    "tqdm": ["logs.py", "data/prepare.py", "predict.py"],
    "matplotlib": ["report/", "page.py"],
    "gradio": ["page.py"],
    "onnx": ["onnx_graph.py"],
    "torch": [],  # benchmarks/ alone
}

# Every file stands on a floor and imports from floors below, or from its own folder.
FLOORS = [
    # Programs, and the API.
    ["main.py", "prepare.py", "evaluate.py", "predict.py", "export.py", "page.py", "report/", "__init__.py"],
    ["train.py"],
    ["tasks.py", "checkpoint.py"],
    ["verification.py"],
    ["estimator.py", "evaluation.py"],
    ["config.py"],
    ["methods.py"],
    ["steps.py", "tables.py", "meshes.py", "data/prepare.py"],
    [
        "data/arrays.py",
        "data/chunks.py",
        "data/pairs.py",
        "data/pipeline.py",
        "data/readers/",
        "data/summary.py",
        "data/synthetic/",
        "data/units.py",
    ],
    [
        "augment.py",
        "faces.py",
        "onnx_graph.py",
        "photos.py",
        "losses.py",
        "state.py",
        "metrics.py",
        "models/",
        "logs.py",
        "pictures.py",
    ],
    ["weight_files.py"],
    ["devices.py", "files.py", "nested.py", "data/crop.py", "data/frames.py", "data/images.py", "depth_code.py"],
    ["runtime.py"],
    ["errors.py", "data/__init__.py"],
]


def name_of(path):
    return str(path.relative_to(PACKAGE))


def imports_of(path):
    """(imported module, its top level name) for every import statement, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative imports hide who imports whom"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def file_of(module):
    """The file of ours that an imported name stands for, None for a foreign one."""
    parts = module.split(".")
    if parts[0] != PACKAGE.name:
        return None
    for end in (len(parts), len(parts) - 1):
        path = PACKAGE.joinpath(*parts[1:end])
        for candidate in (path.with_suffix(".py") if end > 1 else path, path / "__init__.py"):
            if candidate.is_file():
                return candidate
    raise AssertionError(f"{module} is no file of ours")


def matches(name, pattern):
    return name.startswith(pattern) if pattern.endswith("/") else name == pattern


def floor_of(name):
    found = [i for i, floor in enumerate(FLOORS) if any(matches(name, pattern) for pattern in floor)]
    assert len(found) == 1, f"{name} has no floor in FLOORS: decide where it belongs"
    return found[0]


def test_each_library_has_one_home():
    for path in FILES:
        for module in imports_of(path):
            homes = HOMES.get(module.split(".")[0])
            if homes is not None:
                assert any(matches(name_of(path), home) for home in homes), f"{name_of(path)} imports {module}"


def test_every_name_in_the_rules_is_a_file():
    for name in [name for floor in FLOORS for name in floor] + [name for home in HOMES.values() for name in home]:
        assert (PACKAGE / name).exists(), name


def test_nothing_imports_upwards():
    for path in FILES:
        for module in imports_of(path):
            target = file_of(module)
            if target is None or target.parent == path.parent != PACKAGE:
                continue
            assert floor_of(name_of(path)) < floor_of(name_of(target)), f"{name_of(path)} imports {module}"


def test_no_circle():
    graph = {path: {file_of(m) for m in imports_of(path)} - {None, path} for path in FILES}
    done, under_way = set(), []

    def visit(path):
        assert path not in under_way, " -> ".join(name_of(p) for p in [*under_way, path])
        if path in done:
            return
        under_way.append(path)
        for target in graph[path]:
            visit(target)
        under_way.pop()
        done.add(path)

    for path in FILES:
        visit(path)


def test_the_package_does_not_import_configs():
    for path in FILES:
        assert not any(module.split(".")[0] in ("configs", "tests", "tools") for module in imports_of(path)), path


def test_no_configs_below_methods():
    """steps, losses, metrics and models take plain numbers, which methods.py takes from the config."""
    for path in FILES:
        if floor_of(name_of(path)) > floor_of("methods.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                assert not (isinstance(node, ast.Name) and node.id == "config"), name_of(path)


def test_no_pickles():
    for path in FILES:
        text = path.read_text()
        assert "allow_pickle=True" not in text and not any(
            module.split(".")[0] in ("pickle", "cloudpickle", "dill", "joblib") for module in imports_of(path)
        ), name_of(path)
        assert text.count("np.load(") <= text.count("allow_pickle=False"), f"{name_of(path)}: say allow_pickle=False"
