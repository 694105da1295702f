"""The README names only what exists, its map holds every room, and imports go downwards, to seven packages only."""
import ast
import re
import sys

from helpers import ROOT
from presets_page import PAGE, page

README = (ROOT / "README.md").read_text()
EACH = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = "".join(path.read_text() for path in EACH)
ALLOWED = {"torch", "nibabel", "numpy", "scipy", "skimage", "tqdm", "pytest"}
OPTIONAL = {"medpy", "monai", "surface_distance"}


def names(path):
    tree = ast.parse((ROOT / path).read_text())
    inside = [n for c in tree.body if isinstance(c, ast.ClassDef) for n in c.body]
    defined = {n.name for n in [*tree.body, *inside] if hasattr(n, "name")}
    return defined | {
        t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
    }


def imported(path):
    """Names of the modules that a file imports, `cmr.x` for both ways of writing it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "cmr":
            yield from (f"cmr.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def floors():
    """[rooms of each floor], the top one first, from the map under *What is where*."""
    block = README.split("## What is where")[1].split("```")[1]
    found = []
    for line in block.splitlines():
        if re.match(r"[a-z]+ ", line) and not line.startswith("train_"):
            found.append([])
        if found:
            found[-1] += re.findall(r"(\w+)\.py", line)
    return found


def test_every_name_in_the_readme_exists():
    pairs = re.findall(r"`([\w/]+\.py):(\w+)`", PAGES)
    assert len(pairs) >= 10
    for path, name in pairs:
        assert name in names(path), f"a page names {path}:{name}, which does not exist"
    for path in re.findall(r"`((?:cmr|tests)/[\w.]+)`", PAGES):
        assert (ROOT / path).exists(), f"a page names {path}, which does not exist"
    for module in re.findall(r"python -m cmr\.(\w+)", PAGES):
        assert (
            module == "X" or (ROOT / "cmr" / f"{module}.py").exists()
        ), f"a page runs cmr.{module}, which does not exist"
    tests = {n for p in (ROOT / "tests").glob("test_*.py") for n in names(p.relative_to(ROOT))}
    for name in re.findall(r"`(test_\w+)`", PAGES):
        assert name in tests, f"a page names {name}, which does not exist"


def test_every_make_target_in_the_readme_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for name in re.findall(r"`make ([a-z]+)", PAGES):
        assert name in targets, f"a page names `make {name}`, which does not exist"


def test_the_readme_is_read_in_ten_minutes_and_every_page_says_who_needs_it():
    assert len(README.splitlines()) <= 220
    for path in EACH[1:]:
        title, _, who = path.read_text().splitlines()[:3]
        assert title.startswith("# ") and who.startswith("For anyone "), f"{path.name} does not say who needs it"
        assert f"](docs/{path.name})" in README or any(f"]({path.name})" in other.read_text() for other in EACH[1:])


def test_every_link_and_picture_exists():
    as_anchor = lambda heading: re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
    for path in EACH:
        for link, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", path.read_text()):
            to = path.parent / link if link else path
            assert to.exists() or link.startswith("https://"), f"{path.name} links to {link}, which does not exist"
            if anchor:
                headings = re.findall("^#+ (.*)$", to.read_text(), re.M)
                assert anchor in map(as_anchor, headings), f"{path.name} links to {link}#{anchor}, which does not exist"


def test_no_line_of_a_page_begins_like_an_item_by_chance():
    """As does a wrapped "real + DG"."""
    for path in EACH:
        assert not re.search(r"^\s*\+ ", path.read_text(), re.M), path.name


def test_every_flag_in_the_pages_exists():
    scripts = [*ROOT.glob("*.py"), *(ROOT / "cmr").glob("*.py")]
    settings = {
        m for path in scripts for m in re.findall(r"^    (\w+): (?:int|float|str|bool) +?=", path.read_text(), re.M)
    }
    known = {name.replace("_", "-") for name in settings} | {"preset", "help", "nproc"}        # torchrun's own last
    pages = "".join(path.read_text() for path in EACH if path.name != "faults.md")  # which is about misspelt ones
    for flag in re.findall(r"(?<![\w-])--(?:no-)?([a-z][a-z-]+)", pages):
        assert flag in known, f"a page names --{flag}, which does not exist"


def test_the_tables_of_the_readme_are_copied_from_the_page_of_results():
    section = README.split("## Results on real patients")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    page = (ROOT / "docs" / "results-mnms-128.md").read_text().splitlines()
    assert len(rows) >= 10 and all(row in page for row in rows)


def test_the_map_holds_every_room_once_and_every_test_file_mirrors_one():
    mapped = [room for floor in floors() for room in floor]
    rooms = {path.stem for path in (ROOT / "cmr").glob("*.py")} - {"__init__"}
    assert len(mapped) == len(set(mapped)) and set(mapped) == rooms
    tested = {path.stem[len("test_"):] for path in (ROOT / "tests").glob("test_*.py")}
    others = {"train_unet", "train_diffusion", "pipeline", "faults", "precision", "readme", "bench", "results_page"}
    assert tested <= rooms | others, "a test file mirrors no room"


def test_imports_go_downwards_and_in_no_circle():
    floor_of = {room: level for level, floor in enumerate(floors()) for room in floor}
    below = {
        room: {m.split(".")[1] for m in imported(ROOT / "cmr" / f"{room}.py") if m.startswith("cmr.")}
        for room in floor_of
    }
    for room, used in below.items():
        for other in used:
            assert floor_of[other] >= floor_of[room], f"cmr.{room} imports cmr.{other}, which lies above it"
    while below:                                                  # take away what imports nothing that is left
        free = {room for room, used in below.items() if not used & below.keys()}
        assert free, f"a circle of imports among {sorted(below)}"
        below = {room: used for room, used in below.items() if room not in free}
    for path in (ROOT / "cmr").glob("*.py"):
        assert not {"train_unet", "train_diffusion", "evaluate"} & set(imported(path)), f"{path.name} imports a script"


def test_only_the_seven_packages_are_imported():
    for path in [*ROOT.glob("*.py"), *(ROOT / "cmr").glob("*.py"), *(ROOT / "tests").glob("*.py")]:
        for module in imported(path):
            top = module.split(".")[0]
            local = top in ("cmr", "tests") or any((ROOT / folder / f"{top}.py").exists() for folder in (".", "tests"))
            assert local or top in ALLOWED | OPTIONAL or top in sys.stdlib_module_names, f"{path.name} imports {module}"


def test_requirements_are_the_seven():
    lines = (ROOT / "requirements.txt").read_text().split()
    packages = [line.split("==")[0] for line in lines]
    assert packages == ["torch", "nibabel", "numpy", "scipy", "scikit-image", "tqdm", "pytest"]
    assert all("==" in line for line in lines)


def test_lines_and_functions_fit_a_screen():
    for path in [*ROOT.glob("*.py"), *(ROOT / "cmr").glob("*.py")]:
        text = path.read_text()
        wide = [i for i, line in enumerate(text.splitlines(), 1) if len(line) > 120]
        assert not wide, f"{path.name}: lines over 120 columns: {wide}"
        assert len(text.splitlines()) <= 330, f"{path.name} is longer than one sitting"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}:{node.name} does not fit a screen"


def test_the_page_of_presets_is_what_the_presets_are():
    assert PAGE.read_text() == page(), "run `python tests/presets_page.py`"
