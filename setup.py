"""The README as an index shows it: links and pictures lead into the repository, at this version.

Everything else about the package stands in pyproject.toml.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
# of a badge, whose text is a picture, the last part is the link
LINK = re.compile(r"(!?)(\[[^\]]*|\))\]\((?![a-z]+:|#)([^)\s]+)\)")


def read(name: str) -> str:
    """The text of a file."""
    return (ROOT / name).read_text(encoding="utf-8")


project = tomllib.loads(read("pyproject.toml"))["project"]
[version] = re.findall(r'^__version__ = "(.+)"$', read("masksearch/__init__.py"), re.M)


def absolute(link: re.Match[str]) -> str:
    """A link of the README, into the repository at the tag of this version."""
    kind = "raw" if link[1] else "blob"
    return f"{link[1]}{link[2]}]({project['urls']['Repository']}/{kind}/v{version}/{link[3]})"


setup(
    long_description=LINK.sub(absolute, read("README.md")),
    long_description_content_type="text/markdown",
)
