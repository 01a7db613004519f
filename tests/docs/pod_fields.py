"""The tables of Pod fields in ARCHITECTURE.md, made from the runtimes' own tables.

python -m tests.docs.pod_fields      # writes them into ARCHITECTURE.md
"""

from pathlib import Path

from edgelite.runtimes import container_fields, macos_fields, process_fields, windows_fields

PAGE = Path(__file__).resolve().parents[2] / "ARCHITECTURE.md"
BEGIN = "<!-- pod fields -->\n"
END = "<!-- end of pod fields -->\n"


def table() -> str:
    """One row a field, one column a runtime; "the same" as the first."""
    tables = (
        process_fields.FIELDS,
        container_fields.FIELDS,
        windows_fields.FIELDS,
        macos_fields.FIELDS,
    )
    rows = [
        "| field | process (Linux) | container | process (Windows) | process (macOS) |",
        "|---|---|---|---|---|",
    ]
    for path in sorted(set().union(*tables)):
        cells = [_cell(fields.get(path)) for fields in tables]
        rest = ["the same" if cell == cells[0] else cell for cell in cells[1:]]
        rows.append(f"| `{path}` | {' | '.join([cells[0], *rest])} |")
    return "\n".join(rows) + "\n"


def _cell(entry: tuple[str, str] | None) -> str:
    if entry is None:
        return "as its parent"
    verdict, text = entry
    return f"{verdict}: {text.replace('|', chr(92) + '|')}" if text else verdict


def page_with_table(page: str) -> str:
    """`page` with the present table between its marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text()))
