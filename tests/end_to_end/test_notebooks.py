"""The notebooks: what is committed, how they find their run, and that every cell runs on what the demo trained."""

import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
RUNS = {
    "inference": "demo+finetune+x7",
    "understand_model": "demo+finetune+x7",
    "alignment": "ape-demo+align+x7",
    "color_study": "ape-demo+align+x7",
}
MACHINE_PATHS = re.compile(r"(/home|/root|/tmp|/work|/Users|/usr|site-packages)\b")
SECONDS = 45 * 60  # the first of the slow tests trains the demo
MOST_BYTES, MOST_BYTES_OF_A_PICTURE = 1_000_000, 100_000

each_notebook = pytest.mark.parametrize("name", RUNS)


def read(name):
    return nbformat.read(NOTEBOOKS[name], as_version=4)


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def printed(book):
    outputs = [output for cell in code_cells(book) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def pictures(book):
    outputs = [output for cell in code_cells(book) for output in cell.outputs if "data" in output]
    return [output.data["image/png"] for output in outputs if "image/png" in output.data]


def find_run(book):
    """Run the first cell, which finds the run, in this process."""
    exec(code_cells(book)[0].source, {})


def test_readme_lists_every_notebook():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(notebooks/(\w+)\.ipynb\)", readme)) == set(NOTEBOOKS) == set(RUNS)


@each_notebook
def test_outputs_are_committed_and_small_and_name_no_machine(name):
    book = read(name)
    nbformat.validate(book)
    assert [cell.execution_count for cell in code_cells(book)] == list(range(1, len(code_cells(book)) + 1)), "run all cells in order, then save"
    assert NOTEBOOKS[name].stat().st_size < MOST_BYTES
    assert pictures(book) and max(len(picture) * 3 / 4 for picture in pictures(book)) < MOST_BYTES_OF_A_PICTURE
    assert not MACHINE_PATHS.findall(printed(book))
    kinds = [[output.get("name", output.output_type) for output in cell.outputs] for cell in code_cells(book)]
    assert not [pair for own in kinds for pair in pairwise(own) if pair == ("stdout", "stdout")], (
        "join what a cell prints, or a page shows each line apart"
    )
    assert not [output for cell in code_cells(book) for output in cell.outputs if output.get("name") == "stderr"]


@each_notebook
def test_run_is_found_from_the_root_and_from_the_folder_of_the_notebooks(name, tmp_path, monkeypatch):
    (tmp_path / "runs" / RUNS[name]).mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    for start in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(start)
        find_run(read(name))
        assert Path.cwd() == tmp_path


@each_notebook
def test_missing_run_is_one_line_that_says_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=re.escape(f"There is no runs/{RUNS[name]} here: run `make demo` in the repository first.")):
        find_run(read(name))


@pytest.fixture
def executed(demo, monkeypatch):
    """A function that runs all cells of a notebook where the demo ran, and gives the notebook with its new outputs."""
    from nbclient import NotebookClient

    folder = demo[0]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(name):
        book = read(name)
        return NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()

    return run


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(SECONDS)
class TestOnTheDemo:
    def test_inference_answers_and_sees_the_picture(self, executed):
        book = executed("inference")
        assert len(pictures(book)) == len(pictures(read("inference")))
        assert int(re.search(r"(\d+) of 12 as published", printed(book))[1]) >= 6
        assert float(re.search(r"moves ([\d.]+)% of the next token's probability", printed(book))[1]) > 1

    def test_understand_model_comes_to_the_loss_of_the_model(self, executed):
        book = executed("understand_model")
        assert len(pictures(book)) == len(pictures(read("understand_model")))
        by_hand, by_model = (float(re.search(rf"^{label}: ([\d.]+) over 4", printed(book), re.MULTILINE)[1]) for label in ("loss", r"model\(batch\)"))
        assert by_hand == pytest.approx(by_model, abs=2e-3)
        layouts = [float(loss) for loss in re.findall(r"pictures, loss ([\d.]+)", printed(book))]
        assert len(layouts) == 3 and max(layouts) == pytest.approx(min(layouts), abs=2e-3)
        assert re.search(r"vision +0 of +147 tensors have a gradient", printed(book))
        assert re.search(r"connector +2 of +2 tensors have a gradient", printed(book))

    def test_alignment_brings_pictures_to_their_names(self, executed):
        book = executed("alignment")
        assert len(pictures(book)) == len(pictures(read("alignment")))
        found = re.findall(r"^(trained|untrained) +name to picture:.*@10 ([\d.]+)", printed(book), re.MULTILINE)
        recalls = {which: float(recall) for which, recall in found}
        chance = 10 / 129
        assert recalls["trained"] > 4 * chance > 2 * recalls["untrained"]

    def test_color_study_compares_the_model_with_people_and_chooses_a_palette(self, executed):
        book = executed("color_study")
        assert len(pictures(book)) == len(pictures(read("color_study")))
        assert "20 concepts x 71 colors" in printed(book)
        assert "apple and banana: capacity 0.2707, largest semantic distance 0.9987" in printed(book)
        chosen, moved = (int(share) for share in re.search(r"read right: (\d+)% .*, (\d+)% with the moved one", printed(book)).groups())
        assert chosen > 90 and moved < 10
