from vlm.data.datasets.holdout import held_out


def test_about_the_stated_share_is_held_out_and_always_the_same_names():
    names = [f"name {i}" for i in range(10_000)]
    chosen = {name for name in names if held_out(name, 0.1)}
    assert 900 < len(chosen) < 1100  # more than three standard deviations of 30
    assert chosen == {name for name in reversed(names) if held_out(name, 0.1)}
    assert chosen < {name for name in names if held_out(name, 0.2)}


def test_nothing_and_everything_can_be_held_out():
    assert not any(held_out(str(i), 0.0) for i in range(100))
    assert all(held_out(str(i), 1.0) for i in range(100))
