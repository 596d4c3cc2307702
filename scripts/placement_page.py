"""Write the patterns of docs/placement.md from the graphs that the tests quantize.

python scripts/placement_page.py            rewrite the part between the marks
python scripts/placement_page.py --check    exit status 1 when it is not up to date
"""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent, fill
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "placement.md"
BEGIN, END = "<!-- patterns -->\n", "\n<!-- end of patterns -->"

if TYPE_CHECKING:
    from placement_cases import Case


def section(case: Case) -> str:
    """One pattern: heading, why, the graph before and after, source."""
    graphs = (("before", case.before), ("after", case.after))
    code = "\n\n".join(f"```text\n# {when}\n{dedent(text).strip()}\n```" for when, text in graphs)
    return f"### {case.name}\n\n{fill(case.why, 120)}\n\n{code}\n\nSource: {case.source}."


def updated(page: str) -> str:
    """The page with the patterns of today; SystemExit when it has no marks."""
    from placement_cases import CASES

    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE}: the marks {BEGIN.strip()} and {END.strip()} are missing")
    return head + begin + "\n\n".join(map(section, CASES)) + end + tail


def main() -> int:
    """Rewrite or check the page; return the exit status."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the package before tests/onnxq; and where the graphs are
    page = PAGE.read_text(encoding="utf-8")
    new = updated(page)
    if sys.argv[1:] == ["--check"]:
        if new != page:
            print(f"{PAGE.relative_to(ROOT)} is not up to date: python scripts/placement_page.py")
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
