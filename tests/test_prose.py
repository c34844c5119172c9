"""README.md and docs/: short sentences, links that lead somewhere, numbers that a file holds, findings of one form."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from dmcmc_core.errors import UserError
from dmcmc_core.samplers import FITTED, INTEGRATORS
from dmcmc_core.workbench.experiments import Project, filled

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import prose  # noqa: E402

README, DOCS = ROOT / "README.md", ROOT / "docs"
FINDINGS = sorted(path for path in (DOCS / "findings").glob("*.md") if path.name != "index.md")
LINKED = [*prose.pages(), ROOT / "figures" / "README.md", ROOT / "CONTRIBUTING.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")
NUMBER = re.compile(r"(?<![\w.,/^-])(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(e[-+]?\d+)?(?![\w/])( ?%)?")
PLACE = re.compile(r"\b(?:benchmarks|tests|exp|dmcmc_core|figures|notebooks)/[\w./-]+\.\w+|\bpyproject\.toml")


def named(page):
    return page.relative_to(ROOT).as_posix()


def read(page):
    return page.read_text(encoding="utf-8")


def each(pages):
    return pytest.mark.parametrize("page", pages, ids=named)


# Sentences


@each(prose.pages())
def test_no_sentence_is_long(page):
    assert prose.too_long(read(page)) == []


def test_what_a_sentence_is():
    words = " ".join(["word"] * 25)
    assert prose.too_long(f"{words}. {words}.\n\n- {words}\n- {words}\n\n| {words} | {words} |\n|---|---|\n") == []
    assert prose.too_long(f"```\n{words} more\n```\n\n<!-- {words} more -->\n\n[{words}](a-b.md)\n") == []
    assert prose.too_long(f"{words} more.") == [f"{words} more."]
    assert prose.too_long(f"One, {words};\nand more") and prose.too_long(f"| a | {words} more |")
    assert prose.too_long(f"As Zhu et al. 2023 say, {words}")
    assert list(prose.sentences("Is it? Yes (it is). So.")) == ["Is it?", "Yes (it is).", "So."]


def test_the_script_lists_long_sentences(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text(" ".join(["word"] * 26))
    monkeypatch.setattr(sys, "argv", ["prose.py", str(page)])
    assert prose.main() == 1 and "26 words: word word" in capsys.readouterr().out
    page.write_text("Short.")
    assert prose.main() == 0


# Links


@cache
def committed():
    """What is committed, or would be; empty where there is no git."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        return frozenset(subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.splitlines())
    except OSError:
        return frozenset()


@cache
def anchors(page):
    text = prose.without_code(read(page))
    titles = (
        re.sub(r"\[([^\]]*)\]\([^)]*\)|<[^>]*>|[`*]", r"\1", title) for title in re.findall(r"^#+ (.*)$", text, re.M)
    )
    slugs = {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
    return slugs | set(re.findall(r'<a id="([^"]+)"', text))


@each(LINKED)
def test_links_and_anchors_lead_somewhere(page):
    for link in LINK.findall(prose.without_code(read(page))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not committed() or named(target) in committed(), f"{link} is not committed"
        assert not anchor or anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_first():
    reached, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        links = {
            (page.parent / link.partition("#")[0]).resolve() for link in LINK.findall(prose.without_code(read(page)))
        }
        waiting += [link for link in links if link.suffix == ".md" and link.is_file() and ROOT in link.parents]
    assert set(prose.pages()) - reached == {README}


# Numbers


def numbers(text):
    """The numbers of a text outside of code, links' addresses, intervals and names: (value, decimals, percent)."""
    text = re.sub(
        r"`[^`]*`|\]\([^)]*\)|<!--.*?-->|^ {4,}\S.*$|arXiv [\d.]+|\d{4}-\d\d-\d\d", " ", text, flags=re.M | re.S
    )
    return [
        (float(f"{whole.replace(',', '')}{part}{power}"), len(part) - 1 if part else 0, bool(percent))
        for whole, part, power, percent in NUMBER.findall(text)
    ]


@cache
def values(path):
    """The numbers that a file holds, those inside of texts too."""
    found = re.findall(r"\d+(?:,\d{3})+|\d*\.?\d+(?:e[-+]?\d+)?", read(path))
    return frozenset(float(number.replace(",", "")) for number in found)


def holds(files, number):
    """Whether one of the files has a number, after rounding to as many digits."""
    value, decimals, percent = number
    half = 0.5 * 10.0**-decimals * (1 + 1e-9) + 1e-12
    return any(
        abs(v - value) <= half or (percent and abs(100 * v - value) <= half) for path in files for v in values(path)
    )


def published(page, text):
    """The published files that a text links, each with the CSV and the Markdown beside it."""
    found = [(page.parent / link.partition("#")[0]).resolve() for link in LINK.findall(text)]
    found = [path.with_suffix(suffix) for path in found for suffix in (".csv", ".md") if "published" in path.parts]
    return [path for path in found if path.is_file()]


def sections(page):
    return re.split(r"^(?=#+ )", re.sub(r"^```.*?^```$", "", read(page), flags=re.M | re.S), flags=re.M)


@each(FINDINGS)
def test_numbers_of_a_finding_are_published(page):
    files = published(page, read(page))
    for section in sections(page):
        if section.startswith("## Origin"):
            continue
        written = re.sub(
            r"<!-- differences\n.*?<!-- end -->", "", section, flags=re.S
        )  # computed from what is published
        for block in re.split(r"\n\s*\n(?!<!-- source)", written):
            if "<!-- source:" in block:
                assert all((ROOT / place).is_file() for place in PLACE.findall(block))
                continue
            unknown = [number for number in numbers(block) if not holds(files, number)]
            assert not unknown, f"{unknown} of {block!r} is in none of the published files that {named(page)} links"


def test_numbers_of_the_verdicts_are_published():
    page = DOCS / "findings" / "index.md"
    for row in re.findall(r"^\| (?!claim|---).*$", read(page), re.M):
        *_, link = LINK.findall(row)
        target = (page.parent / link).resolve()
        files = published(target, read(target))
        files += [path.with_name(re.sub(r"(table|share|paired)\.csv$", "claims.csv", path.name)) for path in files]
        unknown = [number for number in numbers(row) if not holds([path for path in files if path.is_file()], number)]
        assert not unknown, f"{unknown} of {row!r} is not among the numbers of {link}"


@each([page for page in prose.pages() if page not in FINDINGS and page.parent.name != "findings" and page != README])
def test_sections_with_numbers_name_their_source(page):
    for section in sections(page):
        found = [
            n for n in numbers(re.sub(r"<!-- items -->.*<!-- items -->", "", section, flags=re.S)) if n[0] > 12 or n[1]
        ]
        places = PLACE.findall(section)
        assert not found or places, f"no file is named for {found} of {section[:60]!r} in {named(page)}"
        assert all((ROOT / place).exists() for place in places if "*" not in place), places


def test_numbers_of_the_read_me_are_in_what_it_links():
    for section in sections(README):
        targets = [(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(section)]
        files = [path for path in targets if path.suffix in (".md", ".csv")] + [
            ROOT / p for p in PLACE.findall(section)
        ]
        unknown = [number for number in numbers(section) if not holds(files, number)]
        assert not unknown, f"{unknown} of {section[:60]!r} is in nothing that it links"


def test_which_numbers_are_seen():
    assert numbers("`7` of 1,280 and 3.5 % in glyphs32, 8x8, [x](a2.md), DPM-Solver++(2M)") == [
        (1280, 0, False),
        (3.5, 1, True),
    ]


def test_a_number_is_held_after_rounding(tmp_path):
    (tmp_path / "a.csv").write_text("x\n0.4592,n = 640\n")
    files = [tmp_path / "a.csv"]
    for text in ("0.46", "0.459", "46 %", "640"):
        assert holds(files, *numbers(text))
    for text in ("0.47", "0.458", "47 %", "641"):
        assert not holds(files, *numbers(text))


# Forms


def test_the_read_me_is_one_page():
    lines = read(README).splitlines()
    assert len(lines) <= 130
    assert [line[3:] for line in lines if line.startswith("## ")] == [
        "Install", "Five lines of Python", "One command", "What to choose", "What we found", "Reproduce", "Map",
        "Status", "Cite and licence",
    ]  # fmt: skip


ORDER = ["Answer", "Numbers", "Controls", "Why", "Where it may fail", "Origin"]


@each(FINDINGS)
def test_a_finding_has_the_form_of_all(page):
    title, *parts = re.split(r"^## (.*)$", read(page), flags=re.M)
    assert title.startswith("# ") and title.splitlines()[0].endswith("?")
    assert len(re.findall(r"^!\[.+\]\(../../figures/published/.+\.png\)$", title, re.M)) == 1
    text = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(text) == ORDER
    answer = " ".join(prose.blocks(text["Answer"]))
    assert len(list(prose.sentences(answer))) == 2
    assert len(re.findall(r"\d+\.\d+|\d+ %", answer)) <= 3
    assert text["Numbers"].count("<!-- table") == 1 and 3 <= len(re.findall(r"^\|", text["Numbers"], re.M)) <= 8
    assert re.search(r"\bn = \d+|\d+ (glyph )?chains|seeds", text["Numbers"].split("<!--")[0])
    assert re.search(r"^ {4}\S", text["Why"], re.M), "an equation"
    assert text["Origin"].count("commit `") >= 1


def test_verdicts_are_words():
    words = re.findall(r"^\| ([a-z ]+) \|", read(DOCS / "conventions.md").split("## Verdicts")[1].split("##")[0], re.M)
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in re.findall(r"^\|.*$", read(DOCS / "findings" / "index.md"), re.M)
    ]
    verdicts = [row[-2] for row in rows if row[0] not in ("claim", "---")]
    assert len(verdicts) > 20 and set(verdicts) <= set(words)


def test_every_sampler_has_a_row():
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in re.findall(r"^\| `.*$", read(DOCS / "samplers.md"), re.M)
    ]
    of = {row[0].split("`")[1]: row for row in rows}
    assert of.keys() == {*INTEGRATORS, FITTED.name}
    for entry in (*INTEGRATORS.values(), FITTED):
        name, what, order, calls, when = of[entry.name]
        assert what and when and int(order) == entry.order and name.endswith(" *") == entry.stochastic
        assert (calls == "adaptive") == (entry.calls is None)
        if entry.calls:
            assert eval(re.sub(r"(\d)N", r"\1*N", calls), {"N": 7}) == entry.calls(7), entry.name


@each(prose.pages())
def test_made_parts_are_those_of_what_is_published(page):
    assert filled(Project(ROOT), page, read(page)) == read(page), "python -m dmcmc_core docs writes it again"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("table\nfrom: full/nothing", "is not published"),
        ("table\nfrom: full/pds-table\ncolumns: [arm, speed]", "no column 'speed'"),
        ("table\nfrom: full/pds-table\nrows: {arm: [vanilla, other]}", "has no other"),
        ("table\nfrom: full/pds-table\nbest: smallest", "best must be one of"),
        ("origin full/nothing", "item 'nothing' is not published"),
        ("differences\nfrom: full/nothing\nrows: {}", "is not published"),
        ("gallery nothing", "has no question with a picture"),
        ("differences\nfrom: full/pds-table\nrows: {a: [{arm: other}]}", "no row has arm other"),
    ],
)
def test_a_part_that_is_not_published_is_told(part, message):
    with pytest.raises(UserError, match=f"page.md.*{message}"):
        filled(Project(ROOT), DOCS / "page.md", f"<!-- {part} -->\n<!-- end -->\n")


def test_a_table_of_two_ways_shows_the_best_in_bold():
    about = "from: full/figure3-glyphs-table\nrows: {integrator: KAR1 (Heun)}\n"
    about += "down: arm\nacross: budget\nvalue: KID\nbest: most"
    made = filled(Project(ROOT), DOCS / "page.md", f"<!-- table\n{about}\n-->\nold\n<!-- end -->\n")
    assert "| arm | 10 | 20 | 30 |" in made and "| zero mean | **0.163 ± 0.067** | **0.125 ± 0.059** |" in made
    assert "old" not in made and "](../figures/published/full/figure3-glyphs-table.csv)" in made
