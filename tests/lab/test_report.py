"""`lab report`: one page that stands alone, shows what was measured, and takes no text for markup."""

import base64
import json
import re
from html.parser import HTMLParser

from shared.commands.report import find_records, render_records
from shared.records import projects

import pytest

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(64))
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """A page taken apart: every tag with its attributes, its text, and whether tags close in order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self._open = [], [], []
        self.feed(html)
        self.close()
        assert self._open == []
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def report(lab, tree):
    """Runs the command and takes its page apart."""

    def make():
        code, out, err = lab("report")
        assert (code, err) == (0, ""), err
        return Page((tree.root / "results" / "report.html").read_text(encoding="utf-8")), out

    return make


def test_the_page_shows_what_was_measured(report, tree):
    limit = {"value": 10.0, "share": 0.25, "source": "NVIDIA data sheet", "kind": "data sheet"}
    spread = {"p20": 2.4, "p80": 2.6, "n": 213}
    measurement = tree.measurement(params={"n": 256, "dtype": "float32", "bytes": 2**20}, spread=spread, limit=limit)
    checks = [tree.check(), tree.check(False, claim="small is fast", section="Later")]
    tree.write_record(tree.record("first", checks, measurements=[measurement], notes=["Not run here: x."]))
    page, out = report()
    assert out == "1 script in results/report.html\n"
    for text in ("first", "NVIDIA H200", "2026-11-21", "12.5 s", "torch 2.15.0+cu132", "1 of 2 checks hold", "✓ holds:",
                 "✗ fails: small is fast – 1 against 2", "n dtype bytes value", "256 float32 1 MiB 2.50 TFLOP/s",
                 "2.40 to 2.60 (n = 213)", "10.0 TFLOP/s 25 %", "Limit: NVIDIA data sheet.", "Not run here: x."):  # fmt: skip
        assert text in page.text
    assert {"style": "width:25%"} in page.named("i")


def test_sections_keep_the_order_of_the_run(report, tree):
    measurements = [tree.measurement(section=title) for title in ("One", "Two", "Four")]
    checks = [tree.check(section=title) for title in ("Zero", "One", "Three", "Four", "Five")]
    tree.write_record(tree.record("first", checks, measurements=measurements))
    page = report()[0]
    positions = [page.texts.index(title) for title in ("Zero", "One", "Two", "Four", "Five")]
    assert positions == sorted(positions)
    assert positions[1] < page.texts.index("Three") < positions[3]


def test_scripts_come_in_the_order_of_the_curriculum(report, tree):
    for name in ("another", "first", "second"):
        tree.write_record(tree.record(name, [tree.check()]))
    names = ("second", "first", "another")  # row 00.01, row 00.02, and one of no row
    assert [path.parent.name for path in find_records(tree.alpha)] == list(names)
    page, _ = report()
    places = [page.texts.index(name) for name in names]
    assert places == sorted(places)


def test_the_page_stands_alone(report, tree):
    path = tree.write_record(tree.record("first", [tree.check()], figures=["speed_by_size.png"]))
    (path.parent / "speed_by_size.png").write_bytes(PNG)
    page = report()[0]
    assert page.named("img") == [
        {"src": f"data:image/png;base64,{base64.b64encode(PNG).decode()}", "alt": "Plot: speed by size"}
    ]
    assert not page.named("script")
    assert not page.named("link")
    assert all(attributes["href"].startswith("#") for attributes in page.named("a"))
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {attributes["href"][1:] for attributes in page.named("a")} <= targets
    html = (tree.root / "results" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import", html)
    assert {"http-equiv": "Content-Security-Policy",
            "content": "default-src 'none'; img-src data:; style-src 'unsafe-inline'"} in page.named("meta")  # fmt: skip


def test_the_page_is_made_for_all_readers(report, tree):
    tree.write_record(tree.record("first", [tree.check()], measurements=[tree.measurement()]))
    page = report()[0]
    html = (tree.root / "results" / "report.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert page.named("html") == [{"lang": "en"}]
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.named("th"))
    regions = [attributes for attributes in page.named("div") if attributes.get("class") == "scroll"]
    assert len(regions) == len(page.named("table")) == 2
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels == [1, 2, 3, 4]


HOSTILE = "<script>alert('x')</script>\"&amp; $title </table>"


def test_no_text_becomes_markup(report, tree):
    limit = {"value": 1.0, "share": 0.5, "source": HOSTILE, "kind": HOSTILE}
    measurement = tree.measurement(HOSTILE, section=HOSTILE, params={HOSTILE: HOSTILE}, unit=HOSTILE, limit=limit)
    check = {"section": HOSTILE, "claim": HOSTILE, "evidence": HOSTILE, "holds": True}
    record = tree.record("first", [check], measurements=[measurement], notes=[HOSTILE], figures=[HOSTILE],
                         device={"name": HOSTILE}, versions={"torch": HOSTILE, HOSTILE: HOSTILE}, started=HOSTILE)  # fmt: skip
    path = tree.write_record(record)
    path.write_text(json.dumps(record | {"script": HOSTILE}))
    folder = tree.root / "shared" / "reference"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text(json.dumps(record | {"script": HOSTILE}))
    page = report()[0]
    assert not page.named("script")
    assert page.text.count("<script>alert('x')</script>") > 10


def test_a_picture_comes_from_the_records_own_folder(report, tree):
    (tree.root / "secret.png").write_bytes(b"secret")
    record = tree.record("first", [], figures=["../../../secret.png", str(tree.root / "secret.png"), "gone.png"])
    tree.write_record(record)
    page = report()[0]
    assert not page.named("img")
    assert page.text.count("is no longer beside its record") == 3


def test_reference_machines_stand_beside_the_same_measurement(report, tree):
    mine = [tree.measurement(value=2.5), tree.measurement(value=2.6, params={"n": 512, "dtype": "float32"})]
    tree.write_record(tree.record("first", [], measurements=mine, device={"name": "My laptop"}))
    theirs = [
        tree.measurement(value=99.0, unit="GB/s"),  # the same name in another unit is another thing
        tree.measurement(value=711.0, section="Another title there"),
        tree.measurement(value=88.0, params={"n": 256, "dtype": "bfloat16"}),
    ]
    folder = tree.root / "shared" / "reference" / "h200"
    folder.mkdir(parents=True)
    (folder / "first.json").write_text(json.dumps(tree.record("first", [], measurements=theirs)))
    (folder / "second.json").write_text(
        json.dumps(tree.record("second", [], measurements=[tree.measurement(value=55.0)]))
    )
    page = report()[0]
    assert "NVIDIA H200 torch 2.15.0" in page.text
    assert "256 float32 2.50 TFLOP/s 711 TFLOP/s" in page.text
    assert "512 float32 2.60 TFLOP/s –" in page.text
    assert not re.search(r"\b(99\.0|88\.0|55\.0)\b", page.text)


def test_a_quick_run_is_labelled_and_not_compared(report, tree):
    folder = tree.root / "shared" / "reference"
    folder.mkdir(parents=True)
    (folder / "h200.first.json").write_text(
        json.dumps(tree.record("first", [], measurements=[tree.measurement(value=711.0)]))
    )
    record = tree.record("first", [], measurements=[tree.measurement()], quick=True, device={"name": "My laptop"})
    tree.write_record(record)
    page = report()[0]
    assert "A quick run with tiny sizes" in page.text
    assert "711" not in page.text


@pytest.mark.parametrize("share", [0.0, 1.7, -0.2])
def test_bars_stay_in_their_track(report, tree, share):
    limit = {"value": 1.0, "share": share, "source": "s", "kind": "measured"}
    tree.write_record(tree.record("first", [], measurements=[tree.measurement(limit=limit)]))
    assert report()[0].named("i")[0]["style"] in ("width:0%", "width:100%")


def test_empty_columns_are_left_out(report, tree):
    tree.write_record(tree.record("first", [], measurements=[tree.measurement()]))
    page = report()[0]
    assert "share of limit" not in page.text
    assert "percentile" not in page.text


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"script": "first"}', '{"script": "first", "checks": [3], "measurements": []}',
     '{"script": "first", "checks": [], "measurements": [{"section": "x"}]}'],
)  # fmt: skip
def test_a_record_that_cannot_be_read_is_left_out_and_named(lab, tree, content):
    tree.write_record(tree.record("second", [tree.check()]))
    path = tree.write_record(tree.record("first", []))
    path.write_text(content)
    code, out, err = lab("report")
    assert (code, err) == (0, "")
    assert out.startswith("· left out:")
    assert str(path) in out
    assert out.endswith("1 script in results/report.html\n")


def test_an_old_sparse_record_is_shown(report, tree):
    path = tree.write_record(tree.record("first", []))
    path.write_text('{"script": "first", "checks": [], "measurements": []}')
    assert "unknown" in report()[0].text


def test_nothing_measured_is_one_line(lab, tree):
    code, out, err = lab("report")
    assert (code, out) == (2, "")
    assert err == "lab: nothing has been measured on this machine yet; begin with: python lab.py run 00 --quick\n"
    assert not (tree.root / "results").exists()


def test_out_names_the_file(lab, tree, tmp_path):
    tree.write_record(tree.record("first", [tree.check()]))
    assert lab("report", "--out", str(tmp_path / "new" / "page.html"))[0] == 0
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    code, _, err = lab("report", "--out", str(tmp_path))
    assert code == 2
    assert "is a folder" in err


def test_all_projects_are_in_it(report, tree):
    tree.write_record(tree.record("first", [tree.check()]))
    tree.write_record(tree.record("third", [tree.check()]), tree.beta)
    page = report()[0]
    assert page.texts.index("00 alpha") < page.texts.index("01 beta")
    assert {"href": "#third"} in page.named("a")


def test_the_real_records_of_this_checkout_can_be_rendered():
    found, left_out = render_records([path for project in projects() for path in find_records(project)])
    assert left_out == []
    for each in found:
        Page(each.html)


def test_the_real_command_runs(real_lab, tmp_path):
    page = tmp_path / "report.html"
    code, _, err = real_lab("report", "--out", str(page))
    assert (code, err) == (0, "") if page.exists() else code == 2
    assert page.exists() or "nothing has been measured" in err
