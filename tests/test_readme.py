"""The README names only what exists, and the code imports only what requirements.txt promises."""
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALLOWED = {"torch", "nibabel", "numpy", "scipy", "skimage", "tqdm", "pytest"}
OPTIONAL = {"medpy", "matplotlib"}                                # measured beside ours, drawn with, if installed


def names(path):
    tree = ast.parse((ROOT / path).read_text())
    inside = [n for c in tree.body if isinstance(c, ast.ClassDef) for n in c.body]
    return {n.name for n in [*tree.body, *inside] if hasattr(n, "name")} | {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}


def test_every_name_in_the_readme_exists():
    text = (ROOT / "README.md").read_text()
    pairs = re.findall(r"`([\w/]+\.py):(\w+)`", text)
    assert len(pairs) >= 10
    for path, name in pairs:
        assert name in names(path), f"README names {path}:{name}, which does not exist"
    for path in re.findall(r"`((?:cmr|tests)/[\w.]+)`", text):
        assert (ROOT / path).exists(), f"README names {path}, which does not exist"
    tests = {n for p in (ROOT / "tests").glob("test_*.py") for n in names(p.relative_to(ROOT))}
    for name in re.findall(r"`(test_\w+)`", text):
        assert name in tests, f"README names {name}, which does not exist"


def test_every_make_target_in_the_readme_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for name in re.findall(r"`make ([a-z]+)", (ROOT / "README.md").read_text()):
        assert name in targets, f"README names `make {name}`, which does not exist"


def test_only_the_seven_packages_are_imported():
    for path in [*ROOT.glob("*.py"), *(ROOT / "cmr").glob("*.py"), *(ROOT / "tests").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for module in modules:
                top = module.split(".")[0]
                local = top in ("cmr", "tests") or any((ROOT / folder / f"{top}.py").exists() for folder in (".", "tests"))
                assert local or top in ALLOWED | OPTIONAL or top in sys.stdlib_module_names, f"{path.name} imports {module}"


def test_requirements_are_the_seven():
    lines = (ROOT / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in lines] == ["torch", "nibabel", "numpy", "scipy", "scikit-image", "tqdm", "pytest"] and all("==" in line for line in lines)
