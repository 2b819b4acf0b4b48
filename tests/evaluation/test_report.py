"""A made-up evaluation is reported, and the files are read back as a browser, a spreadsheet and LaTeX would."""

import csv
import random
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sidestep.errors import SidestepError
from sidestep.evaluation.comparison import best_rows, choose_main_row, compare
from sidestep.evaluation.gallery import shown_pairs
from sidestep.evaluation.protocol import PROTOCOLS
from sidestep.evaluation.report import write_report
from sidestep.evaluation.results import Difference, Estimate, EvaluatedPair, Figure, Results, Row

RECORDED = Path(__file__).parents[2] / "benchmarks" / "results" / "evaluation"
FIGURES = [
    Figure("psnr", "PSNR (dB)", "higher", 2),
    Figure("ssim", "SSIM", "higher", 3),
    Figure("perceptual", "Perceptual distance", "lower", 3),
    Figure("gradient", "Sharpness", "one", 2),
    Figure("kernel", "Kernel distance", "lower", 4, per_pair=False),
]
# Each row's value of each figure; the pairs' own scatter about it.
ROWS = {
    Row("copy", "reference copied", "baseline"): (15.1, 0.51, 0.47, 1.0, 0.0021),
    Row("blur", "reference, best blur", "baseline", note="Blurred by the sigma that scores best."): (
        18.9,
        0.60,
        0.58,
        0.21,
        0.09,
    ),
    Row("warp", "warp by known points", "baseline"): (17.2, 0.55, 0.41, 0.8, 0.031),
    Row("coarse", "TUNet, coarse", "model"): (18.4, 0.59, 0.44, 0.34, 0.06),
    Row("wrong", "TUNet, coarse, wrong camera", "model"): (16.3, 0.54, 0.51, 0.33, 0.067),
    Row("variance", "A, variance fusion", "model"): (18.1, 0.58, 0.36, 0.9, 0.013),
    Row("addition", "B & <direct> addition_50%", "model"): (16.9, 0.53, 0.38, 1.21, 0.018),
    Row("auto", "auto", "model", note="A or B, chosen without the target."): (18.0, 0.58, 0.335, 0.95, 0.0125),
    Row("oracle", "better of A and B", "model", uses_target=True): (19.6, 0.62, 0.30, 1.0, 0.011),
    Row("other", "Zero123++", "predictions"): (14.2, 0.49, 0.45, 1.3, 0.022),
    Row("late", "A, noise of a late step", "option"): (17.7, 0.57, 0.37, 0.93, 0.0141),
    Row("vae", "autoencoder alone", "limit", uses_target=True): (29.4, 0.91, 0.08, 0.97, 0.0004),
}
DISTANCES = {"near": (1, 5, 1.12), "middle": (6, 15, 1.0), "far": (16, 24, 0.9)}


@pytest.fixture
def results() -> Results:
    return make_results()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return make_pictures(make_results(), tmp_path_factory.mktemp("pictures"))


def make_results() -> Results:
    """40 pairs of 20 scenes, one of them named by someone malicious."""
    rng = random.Random(4)
    scenes = ["<script>alert(1)</script>", "=1+1", *(f"sofa/{number:03d}" for number in range(2, 20))]
    pairs = []
    for index in range(40):
        distance = ("near", "middle", "far")[index % 3]
        gap = rng.randint(*DISTANCES[distance][:2])
        side = rng.choice(("left", "right"))
        subsets = ("all", distance, side)
        pairs.append(EvaluatedPair(scenes[index % 20], "000.jpg", f"{gap:03d}.jpg", gap, 3.3 * gap, subsets))
    results = Results(
        about={
            "model": "sidestep-small",
            "data": "furniture, test list",
            "command": "sidestep evaluate --data furniture --out report",
            "device": "AMD EPYC, 2 threads",
        },
        pairs=pairs,
        rows=list(ROWS),
        figures=FIGURES,
        missing={"FID": "inception weights not found; give --inception PATH & try again"},
        seconds={"coarse": 0.31, "auto": 3.6},
        memory={"process": 3 << 29},
    )
    for row, centres in ROWS.items():
        results.values[row.name] = {}
        results.estimates[row.name] = {}
        for figure, centre in zip(FIGURES, centres, strict=True):
            values = [centre * (1 + 0.05 * rng.gauss(0, 1)) * DISTANCES[pair.subsets[1]][2] for pair in pairs]
            if figure.per_pair:
                results.values[row.name][figure.name] = list(values)
            for subset in ("all", "near", "middle", "far", "left", "right"):
                value = centre * DISTANCES.get(subset, (0, 0, 1.0))[2]
                results.estimates[row.name].setdefault(subset, {})[figure.name] = Estimate(
                    value, 0.96 * value, 1.05 * value
                )
    for against in ("copy", "blur", "coarse"):
        for place, figure in enumerate(FIGURES):
            value = ROWS[results.rows[7]][place] - next(c for r, c in ROWS.items() if r.name == against)[place]
            for subset in ("all", "far"):
                half = 0.3 * abs(value) + (0.02 if figure.name == "ssim" else 0.0)
                estimate = Estimate(value, value - half, value + half)
                results.differences.append(Difference("auto", against, figure.name, subset, estimate))
    return results


def make_pictures(results: Results, folder: Path) -> Path:
    """Coloured gradients with a disc that moves, for each of the columns and the pairs shown."""
    shown = shown_pairs(results, "auto")
    y, x = np.mgrid[:192, :192] / 192
    noise = np.random.default_rng(0).normal(0, 9, (192, 192, 1))
    for column, name in enumerate(("reference", "coarse", "variance", "addition", "auto", "target")):
        (folder / name).mkdir(parents=True)
        for index in {*shown.first, *shown.best, *shown.worst}:
            disc = (x - 0.3 - 0.06 * column) ** 2 + (y - 0.5) ** 2 < 0.04
            pixels = np.stack([220 * x, 60 + 150 * y, np.full_like(x, 5 * index)], -1) + noise
            pixels[disc] = (240, 190, 60)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index:05d}.png")
    return folder


class Page(HTMLParser):
    """What a browser makes of the page: elements with attributes, and the text of each table row and section."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.bold: list[tuple[str, str]] = []  # (row, value) of each cell that is marked best
        self.texts: dict[str, str] = {}
        self._open: list[str] = []
        self._section = self._row = ""
        self._best = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        self._open.append(tag)
        if tag == "section":
            self._section = attributes["id"] or ""
        if tag == "th" and attributes.get("scope") == "row":
            self._row = ""
        self._best = (tag == "td" and attributes.get("class") == "best") or (self._best and tag == "span")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts[self._section] = self.texts.get(self._section, "") + data
        if "th" in self._open:
            self._row += data
        elif self._best and data.strip():
            self.bold.append((self._row.strip(), data.strip()))
            self._best = False

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def section(self, name: str) -> str:
        return " ".join(self.texts.get(name, "").split())


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_page_needs_nothing_else_and_stays_small(results, pictures, tmp_path):
    write_report(results, tmp_path / "out", pictures, main_row="auto")
    page = Page(tmp_path / "out" / "report.html")
    assert {name for name, _ in page.elements}.isdisjoint({"script", "link", "iframe", "object"})
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert all(link["href"].startswith("#") for link in page.all("a"))
    assert not re.search(r"url\(|@import|https?://", (tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert len(page.all("img")) == 24 * 6
    assert (tmp_path / "out" / "report.html").stat().st_size < 2_500_000


def test_names_from_users_are_text(results, pictures, tmp_path):
    write_report(results, tmp_path, pictures, main_row="auto")
    page = Page(tmp_path / "report.html")
    assert "<script>alert(1)</script>" in page.section("pictures")
    assert "B & <direct> addition_50%" in page.section("figures")
    assert not page.all("direct")


def test_page_is_accessible(results, pictures, tmp_path):
    write_report(results, tmp_path, pictures, main_row="auto")
    page = Page(tmp_path / "report.html")
    assert len(page.all("caption")) == len(page.all("table")) > 8
    assert all(head.get("scope") for head in page.all("th"))
    assert all(image.get("alt") for image in page.all("img"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))
    anchors = {link["href"][1:] for link in page.all("a")}
    assert anchors == {section["id"] for section in page.all("section")}


def test_best_rows_are_fair_ones(results, tmp_path):
    write_report(results, tmp_path, main_row="auto")
    bold = Page(tmp_path / "report.html").bold
    assert ("reference, best blur", "18.90") in bold  # the oracle has 19.60
    assert ("auto", "0.335") in bold
    assert ("reference copied", "1.00") in bold  # nearest 1, not highest
    assert not any("†" in row for row, _ in bold)


def test_rows_that_are_given_the_true_distances_are_compared_with_but_never_the_best(results, tmp_path):
    results.rows = [replace(row, true_geometry=row.name == "warp") for row in results.rows]
    results.estimates["warp"]["all"]["psnr"] = Estimate(25.0, 24.5, 25.5)
    results.differences.append(Difference("auto", "warp", "psnr", "all", Estimate(-7.0, -8.0, -6.0)))
    write_report(results, tmp_path, main_row="auto")
    page = Page(tmp_path / "report.html")
    assert ("reference, best blur", "18.90") in page.bold
    assert not any("§" in row for row, _ in page.bold)
    assert "warp" not in page.section("summary")
    assert "warp by known points§" in page.section("figures")
    assert "−7.00" in page.section("differences")
    assert r"warp by known points$^\S$" in (tmp_path / "tables.tex").read_text(encoding="utf-8")


def test_a_figure_that_blur_wins_has_no_best_row_and_no_place_in_the_summary(results, tmp_path):
    results.figures = [replace(figure, diagnostic=figure.name == "psnr") for figure in FIGURES]
    write_report(results, tmp_path, main_row="auto")
    page = Page(tmp_path / "report.html")
    assert "18.90" not in [value for _, value in page.bold]
    assert "PSNR" not in page.section("summary")
    assert "18.90" in page.section("figures")
    assert "PSNR" in page.section("differences")


def test_ties_in_the_decimals_shown_are_all_best(results, tmp_path):
    results.estimates["coarse"]["all"]["psnr"] = Estimate(18.8961, 18, 19)
    write_report(results, tmp_path, main_row="auto")
    bold = Page(tmp_path / "report.html").bold
    assert {row for row, value in bold if value == "18.90"} == {"reference, best blur", "TUNet, coarse"}


def test_row_without_some_pictures_does_not_compete(results, tmp_path):
    for values in results.values["blur"].values():
        values[0] = None
    write_report(results, tmp_path, main_row="auto")
    page = Page(tmp_path / "report.html")
    assert ("TUNet, coarse", "18.40") in page.bold
    assert "reference, best blur‡1 pair missing" in page.section("figures")
    assert "best blur" not in page.section("summary")
    assert r"reference, best blur$^\ddagger$" in (tmp_path / "tables.tex").read_text()


def test_a_figure_that_a_row_has_for_fewer_pairs_does_not_compete(results, tmp_path):
    """It has pictures of all, and of one no agreement, say; the others' pairs are not held against it elsewhere."""
    results.values["blur"]["psnr"][0] = None
    results.values["oracle"]["psnr"][1] = results.values["copy"]["ssim"][2] = None
    write_report(results, tmp_path, main_row="auto")
    page = Page(tmp_path / "report.html")
    assert ("TUNet, coarse", "18.40") in page.bold
    assert ("reference, best blur", "0.600") in page.bold
    assert "39 pairs‡" in page.section("figures")
    assert "39 pairs‡" not in page.section("options")
    assert r"$18.90_{18.14}^{19.84}$ (39 pairs)$^\ddagger$" in (tmp_path / "tables.tex").read_text(encoding="utf-8")
    lines = {(x["row"], x["figure"]): x["pairs"] for x in read_csv(tmp_path / "tables.csv") if x["subset"] == "all"}
    assert (lines["blur", "psnr"], lines["blur", "ssim"], lines["auto", "psnr"]) == ("39", "40", "40")


def test_of_two_rows_of_different_pairs_neither_is_the_best(results):
    two = [row for row in results.rows if row.name in ("blur", "coarse")]
    assert [row.name for row in best_rows(results, two, FIGURES[0])] == ["blur"]
    results.values["blur"]["psnr"][0] = results.values["coarse"]["psnr"][1] = None
    assert not best_rows(results, two, FIGURES[0])


def test_summary_says_where_a_baseline_wins(results, tmp_path):
    write_report(results, tmp_path, main_row="auto")
    summary = Page(tmp_path / "report.html").section("summary")
    assert "Worse in PSNR (dB) and Kernel distance: there a baseline wins." in summary
    # The best baseline of it is the warp, which no paired difference is with: the rows' own intervals decide.
    assert "Better in Perceptual distance." in summary
    assert "No clear difference in SSIM and Sharpness: the intervals, where there are any, allow either." in summary
    assert "The best value of all is a baseline's in PSNR (dB), SSIM, Sharpness and Kernel distance." in summary
    assert "−0.90" in summary  # auto 18.0 minus blur 18.9


def test_difference_counts_whichever_way_round_it_was_taken(results, tmp_path):
    results.differences = [
        Difference(d.against, d.row, d.figure, d.subset, Estimate(-d.estimate.value, -d.estimate.high, -d.estimate.low))
        for d in results.differences
    ]
    write_report(results, tmp_path, main_row="auto")
    summary = Page(tmp_path / "report.html").section("summary")
    assert "Worse in PSNR (dB)" in summary
    assert "−0.90" in summary


def test_sharper_than_the_truth_is_no_gain(results, tmp_path):
    """Both above 1: the row with more of it is further away, though its difference is positive."""
    for name, value in (("auto", 1.4), ("copy", 1.1)):
        results.estimates[name]["all"]["gradient"] = Estimate(value, value - 0.05, value + 0.05)
    results.estimates["warp"]["all"]["gradient"] = Estimate(0.5, 0.4, 0.6)
    difference = Difference("auto", "copy", "gradient", "all", Estimate(0.3, 0.2, 0.4))
    results.differences = [d for d in results.differences if d.figure != "gradient"] + [difference]
    write_report(results, tmp_path, main_row="auto")
    assert "Worse in PSNR (dB), Sharpness and Kernel distance" in Page(tmp_path / "report.html").section("summary")


def test_nothing_is_called_better_without_an_interval(results, tmp_path):
    """A figure of whole sets that has none, as FID; and one scene, which says nothing of others."""
    for row, value in (("auto", 0.001), ("copy", 0.002)):
        results.estimates[row]["all"]["kernel"] = Estimate(value, value, value)
    write_report(results, tmp_path / "figure", main_row="auto")
    page = Page(tmp_path / "figure" / "report.html")
    assert "and Kernel distance: the intervals, where" in page.section("summary")
    assert "▲ better" in page.section("differences")
    results.pairs = [replace(pair, scene="a") for pair in results.pairs]
    write_report(results, tmp_path / "scene", main_row="auto")
    page = Page(tmp_path / "scene" / "report.html")
    assert "Better in" not in page.section("summary")
    assert "Worse in" not in page.section("summary")
    assert "▲ better" not in page.section("differences")


def test_one_scene_that_a_figure_was_measured_on_says_nothing_of_others(results, tmp_path):
    for row in ("auto", "warp"):
        for index, pair in enumerate(results.pairs):
            if pair.scene != "sofa/002":
                results.values[row]["perceptual"][index] = None
        value = results.estimates[row]["all"]["perceptual"].value
        results.estimates[row]["all"]["perceptual"] = Estimate(value, value, value)
    difference = Difference("auto", "warp", "perceptual", "all", Estimate(-0.1, -0.1, -0.1))
    results.differences.append(difference)
    perceptual = next(figure for figure in FIGURES if figure.name == "perceptual")
    assert compare(results, "auto", "warp", perceptual) == (difference.estimate, "unclear")
    write_report(results, tmp_path, main_row="auto")
    assert "Those of few scenes, here as few as 1, are rough" in Page(tmp_path / "report.html").section("summary")


def test_missing_figures_and_their_reasons_are_shown(results, tmp_path):
    write_report(results, tmp_path / "with", main_row="auto")
    assert "inception weights not found; give" in Page(tmp_path / "with" / "report.html").section("missing")
    results.missing = {}
    write_report(results, tmp_path / "without", main_row="auto")
    assert not Page(tmp_path / "without" / "report.html").section("missing")


def test_charts_follow_the_values(results, tmp_path):
    write_report(results, tmp_path, main_row="auto")
    charts = [svg["aria-label"] for svg in Page(tmp_path / "report.html").all("svg") if svg.get("role") == "img"]
    assert len(charts) == len(FIGURES)
    assert charts[0] == "PSNR (dB) over view distance. auto, near: 20.16; auto, middle: 18.00; auto, far: 16.20."
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    main = re.search(r'class="series main">.*?<polyline points="([^"]+)"', page, re.DOTALL)
    heights = [float(point.split(",")[1]) for point in main.group(1).split()]
    assert heights == sorted(heights)  # falls with distance, and SVG counts downwards
    assert "autoencoder alone" not in Page(tmp_path / "report.html").section("distance")


@pytest.mark.parametrize("value", [0.0, 0.3, 1e-17])
def test_a_figure_that_is_the_same_but_for_rounding_is_drawn(results, tmp_path, value):
    for place, estimates in enumerate(results.estimates.values()):
        for subset in ("near", "middle", "far"):
            rounded = value + 4e-17 * (place % 2)
            estimates[subset]["psnr"] = Estimate(rounded, rounded, rounded)
    write_report(results, tmp_path, main_row="auto")
    (chart, *_) = [svg for svg in Page(tmp_path / "report.html").all("svg") if svg.get("role") == "img"]
    assert "PSNR (dB) over view distance" in chart["aria-label"]


def test_labels_of_lines_do_not_overlap(results, tmp_path):
    for estimates in results.estimates.values():
        for subset in ("near", "middle", "far"):
            estimates[subset]["psnr"] = Estimate(17.0, 17.0, 17.0)
    write_report(results, tmp_path, main_row="auto")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for chart in re.findall(r'<svg viewBox="0 0 440.*?</svg>', page, re.DOTALL):
        heights = sorted(float(y) for y in re.findall(r'<text x="266" y="([^"]+)"', chart))
        assert len(heights) == 10
        assert min(np.diff(heights)) > 14.9


def test_best_and_worst_scenes_are_of_the_main_row(results, pictures, tmp_path):
    for index, pair in enumerate(results.pairs):
        number = [p.scene for p in results.pairs].index(pair.scene)
        results.values["auto"]["perceptual"][index] = 0.1 + 0.01 * number + (0.001 if index == number else 0)
        results.values["variance"]["perceptual"][index] = 0.5 - 0.01 * number
    auto, variance = shown_pairs(results, "auto"), shown_pairs(results, "variance")
    assert auto.first == list(range(12))
    assert [results.pairs[i].scene for i in auto.best] == [results.pairs[i].scene for i in range(6)]
    assert [results.pairs[i].scene for i in auto.worst] == [results.pairs[i].scene for i in range(19, 13, -1)]
    assert [results.pairs[i].scene for i in variance.best] == [results.pairs[i].scene for i in auto.worst]
    write_report(results, tmp_path, pictures, main_row="variance")
    assert "Perceptual distance of A, variance fusion" in Page(tmp_path / "report.html").section("pictures")


def test_missing_pictures_are_left_out(results, pictures, tmp_path):
    pictures = shutil.copytree(pictures, tmp_path / "pictures")
    shutil.rmtree(pictures / "addition")
    (pictures / "auto" / "00000.png").unlink()
    for column in pictures.iterdir():
        (column / "00001.png").unlink()
    write_report(results, tmp_path, pictures, main_row="auto")
    page = Page(tmp_path / "report.html")
    text = page.section("pictures")
    assert "The first 11 pairs of the list" in text  # pair 2 has nothing to show
    assert "no picture" in text
    assert "addition_50%" not in text
    write_report(results, tmp_path / "none", tmp_path / "nowhere", main_row="auto")
    assert "The run kept no pictures." in Page(tmp_path / "none" / "report.html").section("pictures")


def test_tables_csv_is_long_and_unrounded(results, tmp_path):
    results.estimates["blur"]["all"]["psnr"] = Estimate(18.123456789, 17.5, 18.5)
    write_report(results, tmp_path, main_row="auto")
    lines = read_csv(tmp_path / "tables.csv")
    assert len(lines) == len(ROWS) * 6 * len(FIGURES)
    line = next(x for x in lines if (x["row"], x["subset"], x["figure"]) == ("blur", "all", "psnr"))
    assert line["title"] == "reference, best blur"
    assert (line["group"], line["value"], line["low"], line["high"]) == ("baseline", "18.123456789", "17.5", "18.5")


def test_pairs_csv_has_a_line_for_each_pair_and_row(results, tmp_path):
    results.values["auto"]["psnr"][1] = None
    write_report(results, tmp_path, main_row="auto")
    lines = read_csv(tmp_path / "pairs.csv")
    assert len(lines) == 40 * len(ROWS)
    line = next(x for x in lines if (x["index"], x["row"]) == ("1", "auto"))
    assert (line["scene"], line["psnr"]) == ("=1+1", "")
    assert float(line["ssim"]) == results.values["auto"]["ssim"][1]
    assert "kernel" not in line


def test_latex_tables(results, tmp_path):
    write_report(results, tmp_path, main_row="auto")
    tex = (tmp_path / "tables.tex").read_text(encoding="utf-8")
    assert tex.count(r"\begin{table}") == tex.count(r"\end{tabular}") == 6
    table = tex[: tex.index(r"\end{table}")]
    assert r"B \& \textless{}direct\textgreater{} addition\_50\%" in table
    assert r"reference, best blur & $\mathbf{18.90}_{18.14}^{19.84}$" in table
    assert r"better of A and B$^\dagger$ & $19.60_{18.82}^{20.58}$" in table
    assert r"PSNR (dB) $\uparrow$ & SSIM $\uparrow$ & Perceptual distance $\downarrow$ & Sharpness $\to 1$" in table
    assert "autoencoder alone" not in tex
    for line in table.splitlines():
        if "&" in line:
            assert len(re.findall(r"(?<!\\)&", line)) == len(FIGURES)


def test_results_are_written_beside(results, tmp_path):
    write_report(results, tmp_path, main_row="auto")
    assert Results.read(tmp_path / "results.json") == results


def test_results_of_tens_of_thousands_of_pairs_are_read(results, tmp_path):
    results.write(tmp_path / "results.json")
    with (tmp_path / "results.json").open("a") as file:
        file.write(" " * 2**26)
    assert Results.read(tmp_path / "results.json") == results


def test_a_report_that_was_recorded_before_is_read_and_makes_the_same_tables(tmp_path):
    results = Results.read(RECORDED / "results.json")
    write_report(results, tmp_path)
    recorded = read_csv(RECORDED / "tables.csv")
    lines = read_csv(tmp_path / "tables.csv")
    assert len(lines) == len(recorded) > 500
    assert all(line.items() >= kept.items() for line, kept in zip(lines, recorded, strict=True))


def test_little_is_enough(tmp_path):
    """One pair, one row of another program, one figure of the whole set without an interval."""
    pair = EvaluatedPair("a", "0.jpg", "1.jpg", 1, 2.0, ("all", "near"))
    results = Results({}, [pair], [Row("seva", "SEVA", "predictions")], [FIGURES[4]])
    write_report(results, tmp_path / "empty")
    assert "Nothing was measured" in Page(tmp_path / "empty" / "report.html").section("summary")
    results.estimates = {"seva": {"all": {"kernel": Estimate(-0.00001, -0.00001, -0.00001)}}}
    write_report(results, tmp_path / "one")
    page = Page(tmp_path / "one" / "report.html")
    assert "No baseline was measured" in page.section("summary")
    assert "SEVA 0.0000" in page.section("figures")  # not -0.0000
    assert not page.bold  # there is nothing to be better than


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(results, tmp_path, value):
    for subset in ("all", "near"):
        results.estimates["copy"][subset]["psnr"] = Estimate(value, value, value)
    write_report(results, tmp_path, main_row="auto")
    table = Page(tmp_path / "report.html").section("figures")
    assert "nan" not in table.lower()
    assert ("∞" in table) == (value == float("inf"))


def test_unknown_main_row_and_rows_that_all_see_the_target(results, tmp_path):
    with pytest.raises(SidestepError, match="best: no such row; there are copy, blur"):
        write_report(results, tmp_path, main_row="best")
    results.rows = [replace(row, uses_target=True) for row in results.rows]
    with pytest.raises(SidestepError, match="every row sees the true target"):
        write_report(results, tmp_path)
    assert not list(tmp_path.iterdir())


def test_published_figures_are_shown_as_copied(results, tmp_path):
    results.published = list(PROTOCOLS["paper-167class"].published)
    write_report(results, tmp_path, main_row="auto")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in ("Copied from print", "NViST", "91.63", "0.409"):
        assert text in page
    assert Results.read(tmp_path / "results.json").published == results.published


def test_the_report_is_about_the_default_fusion(results, tmp_path):
    assert choose_main_row(results) == "variance"
    results.rows = [row for row in results.rows if row.name != "variance"]
    assert choose_main_row(results) == next(row.name for row in results.rows if row.group == "model")
