"""Collects the examples of docstrings and of Markdown pages as tests."""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser

pytest_collect_file = (
    Sybil(parsers=[DocTestParser()], pattern="*.py", path="src")
    + Sybil(
        parsers=[PythonCodeBlockParser(), SkipParser()],
        patterns=["README.md", "CONTRIBUTING.md", "docs/*.md", "docs/*/*.md"],
    )
).pytest()
