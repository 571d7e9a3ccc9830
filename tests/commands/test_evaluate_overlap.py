from types import SimpleNamespace

from vlm.commands.evaluate_overlap import trained_on


def test_a_run_of_the_same_name_elsewhere_says_nothing_of_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root, dataset in (("runs", "other"), ("mine", "own")):
        folder = tmp_path / root / "demo+align+x7" / "checkpoints" / "step-000001"
        folder.mkdir(parents=True)
        (folder / "model.json").write_text(dataset, encoding="utf-8")
    monkeypatch.setattr("vlm.models.checkpoint.read_manifest", lambda folder: SimpleNamespace(trained_on=[(folder / "model.json").read_text()]))
    assert trained_on("demo") == ["other"]
    assert trained_on("demo", run_root=tmp_path / "mine") == ["own"]
    assert trained_on("demo", run_root=tmp_path / "nowhere") == []
