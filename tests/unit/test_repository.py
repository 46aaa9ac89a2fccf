"""What the repository says about itself is said once, and leads somewhere."""

import importlib.util
import re
import tomllib
from pathlib import Path

import django
import pytest
import yaml
from django.db.backends.mysql.features import DatabaseFeatures as MySQLFeatures
from django.db.backends.postgresql.features import DatabaseFeatures as PostgreSQLFeatures
from django.db.backends.sqlite3.base import DatabaseFeatures as SQLiteFeatures

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SUPPORTED = (ROOT / "docs" / "compatibility.md").read_text()
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
CI = (ROOT / ".ci" / "run").read_text()


def rows_under(heading):
    """The first table below this heading: a dict for each row."""
    lines = SUPPORTED.split(f"\n## {heading}\n")[1].split("\n## ")[0].splitlines()
    names, _, *rows = [cells(line) for line in lines if line.startswith("|")]
    return [dict(zip(names, row, strict=True)) for row in rows]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def versions(text):
    """``3.12 to 3.14`` → every version from the first to the last."""
    first, last = (int(part.split(".")[1]) for part in text.split(" to "))
    return {f"3.{minor}" for minor in range(first, last + 1)}


MATRIX = rows_under("Django, Python and databases")
PAIRS = {(row["Python"], row["Django"]) for row in rows_under("What is tested")}
PYTHONS = set.union(*(versions(row["Python"]) for row in MATRIX))
DJANGOS = {row["Django"] for row in MATRIX}


def number(version):
    return tuple(map(int, version.split(".")))


def classifiers(prefix):
    found = (line.removeprefix(prefix) for line in PROJECT["classifiers"])
    return {version for version in found if re.fullmatch(r"\d+\.\d+", version)}


class TestSupportedVersions:
    def test_the_package_names_them(self):
        assert classifiers("Programming Language :: Python :: ") == PYTHONS
        assert classifiers("Framework :: Django :: ") == DJANGOS
        assert PROJECT["requires-python"] == f">={min(PYTHONS, key=number)}"
        assert f"django>={min(DJANGOS, key=number)}" in PROJECT["dependencies"]

    def test_each_is_tested_in_a_pair_that_is_supported(self):
        supported = {row["Django"]: versions(row["Python"]) for row in MATRIX}
        assert all(python in supported[version] for python, version in PAIRS)
        assert {python for python, _ in PAIRS} == PYTHONS
        assert {version for _, version in PAIRS} == DJANGOS

    def test_both_kinds_of_ci_run_the_pairs(self):
        jobs = WORKFLOW["jobs"]["suite"]["strategy"]["matrix"]["include"]
        assert {(job["python"], job["django"]) for job in jobs} == PAIRS
        assert set(re.findall(r'"--also\S* (\S+) (\S+)"', CI)) == PAIRS

    def test_the_oldest_servers_are_tested_with_the_oldest_and_the_newest_django(self):
        jobs = WORKFLOW["jobs"]["databases"]["strategy"]["matrix"]["include"]
        ends = [min(MATRIX, key=django_of), max(MATRIX, key=django_of)]
        images = {
            (f"{image}:{major(row[name])}", row["Django"])
            for row in ends
            for name, image in IMAGES.items()
        }
        assert {(job["image"], job["django"]) for job in jobs} == images
        assert all((job["python"], job["django"]) in PAIRS for job in jobs)

    def test_no_minimum_is_below_that_of_django(self):
        (row,) = (row for row in MATRIX if number(row["Django"]) == django.VERSION[:2])
        for name, minimum in minimums_of_django().items():
            assert number(row[name]) >= minimum, name


IMAGES = {"PostgreSQL": "postgres", "MariaDB": "mariadb", "MySQL": "mysql"}


def django_of(row):
    return number(row["Django"])


def major(version):
    """What the images of a server are tagged with: not the patch."""
    return ".".join(version.split(".")[:2])


def minimums_of_django():
    class Server:
        def __init__(self, *, mysql_is_mariadb):
            self.mysql_is_mariadb = mysql_is_mariadb

    return {
        "PostgreSQL": PostgreSQLFeatures.minimum_database_version,
        "SQLite": SQLiteFeatures.minimum_database_version,
        "MariaDB": MySQLFeatures(Server(mysql_is_mariadb=True)).minimum_database_version,
        "MySQL": MySQLFeatures(Server(mysql_is_mariadb=False)).minimum_database_version,
    }


PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", ".github/**/*.md")
    for page in ROOT.glob(pattern)
)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(#[^)\s]*)?\)|(?:src|srcset)=\"([^\"]+)\"")


def prose(page):
    return FENCE.sub("", page.read_text())


def anchors(page):
    """The slugs that a code host gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    for path, anchor, image in LINK.findall(prose(page)):
        target = (page.parent / (path or image)).resolve() if path or image else page
        assert target.exists(), path or image
        assert not anchor or anchor.removeprefix("#") in anchors(target), f"{path}{anchor}"


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("link", "broken"),
    [
        ("other.html", False),
        ("other.html#there", False),
        ("#here", False),
        ("#", False),
        ("style.css?v=1", False),
        ("https://example.com/nowhere", False),
        ("other.html#nowhere", True),
        ("#nowhere", True),
        ("nowhere.html", True),
        ("nowhere.css", True),
    ],
)
def test_a_link_of_the_site_that_leads_nowhere_is_found(tmp_path, link, broken):
    (tmp_path / "page.html").write_text(f'<h1 id="here"></h1><a href="{link}">link</a>')
    (tmp_path / "other.html").write_text('<h1 id="there"></h1>')
    (tmp_path / "style.css").touch()
    assert script("check_site").broken_links(tmp_path) == [f"page.html: {link}"] * broken


def test_a_site_without_a_search_is_no_site(tmp_path):
    assert script("check_site").main(tmp_path) == 1


REAL = {"version": "1.2.0", "urls": {"Repository": "https://code.example.org/sequences"}}


@pytest.mark.parametrize(
    ("tag", "project", "changelog", "count"),
    [
        ("v1.2.0", REAL, "# Changelog\n\n## 1.2.0\n", 0),
        ("v1.2.1", REAL, "# Changelog\n\n## 1.2.0\n", 1),
        ("v1.2.0", REAL, "# Changelog\n\n## Unreleased\n", 1),
        ("v1.2.0", REAL | {"urls": {"Repository": "https://example.com/x"}}, "\n## 1.2.0\n", 1),
    ],
)
def test_a_release_is_refused_where_the_tag_the_changelog_or_the_address_disagree(
    tag, project, changelog, count
):
    assert len(script("check_release").problems(tag, project, changelog)) == count


def test_the_address_of_the_repository_stands_in_one_place():
    address = PROJECT["urls"]["Repository"]
    assert all(url.startswith(address) for url in PROJECT["urls"].values())
    files = [*PAGES, *ROOT.glob(".github/**/*.y*ml"), *ROOT.glob("sequences/**/*.py")]
    assert not [file for file in files if address in file.read_text()]


def test_the_type_checker_is_configured_as_the_docs_say():
    (text,) = re.findall(
        r"^```toml\n(.*?)^```$", (ROOT / "docs" / "writing.md").read_text(), re.M | re.S
    )
    shown = tomllib.loads(text)["tool"]
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert shown["mypy"]["plugins"] == ours["mypy"]["plugins"]
    ((module,),) = [override["module"] for override in shown["mypy"]["overrides"]]
    assert module in ours["mypy"]["overrides"][0]["module"]
    assert shown["django-stubs"].keys() == ours["django-stubs"].keys()
