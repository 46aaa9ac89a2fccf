"""What a tag must agree with before it is published: `python .ci/check_release.py v1.2.0`."""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def problems(tag: str, project: dict[str, object], changelog: str) -> list[str]:
    version = project["version"]
    found = []
    if tag != f"v{version}":
        found.append(f"The tag is {tag}, and pyproject.toml has the version {version}")
    if f"\n## {version}" not in changelog:
        found.append(f"CHANGELOG.md has no section for {version}")
    if "//example.com" in str(project["urls"]):
        found.append("[project.urls] in pyproject.toml has no real address yet")
    return found


def main(tag: str) -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = problems(tag, project, (ROOT / "CHANGELOG.md").read_text())
    print(*found, sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
