import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vlm.tracking import TensorBoard


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    return events


def test_scalars_have_the_metrics_names_and_are_there_before_the_end(tmp_path):
    tracker = TensorBoard(tmp_path)
    tracker.log(1, {"loss": 2.5, "lr/connector": 1e-3})
    tracker.log(2, {"loss": 1.5})
    events = read(tmp_path)
    assert set(events.Tags()["scalars"]) == {"loss", "lr/connector"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.5), (2, 1.5)]
    tracker.finish()


def test_what_the_model_said_is_a_table_with_its_pictures(tmp_path, shown):
    tracker = TensorBoard(tmp_path)
    tracker.show(3, [*shown, type(shown[0])(None, "<image>\na|b?", "x", "y")])
    tracker.finish()
    events = read(tmp_path)
    (text,) = events.Tensors("samples/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    assert text.step == 3
    assert table.splitlines()[2:4] == ["| 0 | color? | red | [bold]red |", "|  | Say yes. | Yes | No |"]
    assert table.splitlines()[4] == "|  | &lt;image> a&#124;b? | x | y |"
    assert [(image.width, image.height) for image in events.Images("pictures/0")] == [(8, 8)]


def test_resumed_run_hides_the_steps_that_it_takes_again(tmp_path):
    killed = TensorBoard(tmp_path)
    for step in (1, 2, 3, 4):
        killed.log(step, {"loss": 10.0 - step})
    resumed = TensorBoard(tmp_path, after_step=2)
    resumed.log(3, {"loss": 1.0})
    resumed.finish()
    assert [(event.step, event.value) for event in read(tmp_path).Scalars("loss")] == [(1, 9.0), (2, 8.0), (3, pytest.approx(1.0))]
    killed.finish()
