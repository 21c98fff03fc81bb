"""report/html.py: one page, nothing from outside, and names are only text."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

from fedemb.report.html import report_page, write_report

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;"
SUMMARY = {
    "metrics": {EVIL: 0.5, "map": 0.25},
    "baselines": {EVIL: {"map": 0.5}},
    "per_client": {EVIL: {"mean": 0.5, "std": 0.1, "worst_decile": 0.2}},
    "rejected": {EVIL: 3},
    "data": {EVIL: 1234567},
    "privacy": {"unit": EVIL, "epsilon": 1.0, "delta": EVIL, "accountant": EVIL, "private": False},
    "versions": {"python": EVIL, EVIL: "1"},
    "config_digest": EVIL,
}


class Page(HTMLParser):
    """Tags with their attributes, and the text between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_names_are_text() -> None:
    page = report_page(EVIL, SUMMARY, f"name: {EVIL}", {EVIL: b"\x89PNG"})
    found = Page(page)
    assert not found.open
    assert {tag for tag, _ in found.tags}.isdisjoint(
        {"script", "iframe", "object", "embed", "link", "form", "a"}
    )
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    assert [image["alt"] for image in images] == [EVIL]
    text = "".join(found.texts)
    # Title, heading, metric, model, metric per client, rejection, data; 3 of privacy, 2 versions; digest...
    assert text.count("<script>alert(1)</script>") == 14


def test_nothing_is_loaded_from_outside() -> None:
    page = report_page("run", {"metrics": {"map": 0.5}}, "seed: 0", {"disk": b"\x89PNG picture"})
    assert not re.search(r"(?:https?:)?//", page.split("</style>")[1])
    (image,) = (attributes for tag, attributes in Page(page).tags if tag == "img")
    kind, data = (image["src"] or "").split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == b"\x89PNG picture"
    assert "default-src 'none'" in page
    assert "url(" not in page


def test_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "disk.png").write_bytes(b"\x89PNG")
    summary = {
        "metrics": {"map": 0.5, "mean_rank": 3.0},
        "baselines": {"local_only": {"map": 0.25}},
        "communication": {"upload_bytes": 2048, "download_bytes": 0},
        "data": {"rows_read": 1234567},
    }
    path = write_report(tmp_path, summary, "task: größer", [tmp_path / "disk.png", tmp_path / "missing.png"])
    assert path == tmp_path / "report.html"
    page = path.read_text(encoding="utf-8")
    assert page.count("<img") == 1
    for part in (
        f"fedemb: {tmp_path.name}",
        "<b>0.5000</b>",
        "local-only",
        "2.00 KiB",
        "1,234,567",
        "task: größer",
    ):
        assert part in page
    assert "Versions" not in page
    assert "Configuration" in page
