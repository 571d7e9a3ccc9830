from vlm.conf.overview import LARGE_FAMILY, contrastive_table, families, presets_in_words, table
from vlm.conf.presets import PRESETS


def test_every_preset_stands_in_one_row():
    rows = [model for models in families().values() for model in models]
    assert sorted(f"{row.model}/{stage}" for row in rows for stage in row.stages) == sorted(PRESETS)
    assert len({row.name for row in rows}) == len(rows)


def test_row_shows_stages_in_their_order_and_the_last_one():
    (row,) = [model.row() for models in families().values() for model in models if model.model == "phi2-siglip-b16"]
    assert row == {
        "name": "phi2-siglip-b16/{align,finetune}",
        "vision": "siglip-b16-384",
        "connector": "mlp2x-gelu",
        "language": "phi-2",
        "resize": "squash",
        "dataset": "llava-lvis4v-lrv",
        "passes": "1",
        "trains": "connector, rank-8 adapter",
    }


def test_large_families_come_last_and_are_counted_in_a_sentence():
    sizes = [len(models) for models in families().values()]
    assert sizes[-1] == 49
    assert max(sizes[:-1]) <= LARGE_FAMILY
    said = presets_in_words()
    assert said.startswith("demo/align, demo/finetune, llava-1.5-7b/align, ")
    assert said.endswith("reproduction-llava-v15-7b/align and 51 like it (`vlm list presets`)")


def test_columns_of_the_table_stand_below_each_other():
    header, *lines = table()
    column = header.index("language")
    assert {line[column - 1] for line in lines if "/" in line.split(" ")[0]} == {" "}
    assert next(line for line in lines if line.startswith("tiny/"))[column:].startswith("tiny-llama ")


def test_narrow_terminal_folds_the_tables_and_loses_no_word():
    for made in (table, contrastive_table):
        wide, narrow = made(None), made(80)
        assert max(map(len, narrow)) <= 80
        assert " ".join(narrow).replace(";", "").split() == " ".join(wide).split()
        assert made(1000) == wide
