"""Which requests are answered together, and what becomes of those that are given up or fail."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import vlm.infer.server.batching
from vlm.infer.server.batching import Batcher, Closed, Job, batch_of
from vlm.infer.server.limits import Limits
from vlm.infer.server.metrics import Metrics
from vlm.models.answer_rows import Piece
from vlm.models.generate import PreparedPrompt, ask, prepare
from vlm.models.sampling import Sampling

HOT = Sampling(temperature=1.0, max_new_tokens=5)


def job(length: int = 3, sampling: Sampling | None = None) -> Job:
    return Job(PreparedPrompt(torch.zeros(1, length, dtype=torch.long)), sampling or Sampling(max_new_tokens=5), False, lambda piece: None)


def test_a_batch_is_the_oldest_job_and_what_fits_to_it():
    jobs = [job(), job(sampling=HOT), job(sampling=Sampling(top_p=0.5, max_new_tokens=9)), job(sampling=HOT), job()]
    assert batch_of(jobs, Limits()) == [jobs[0], jobs[2], jobs[4]]
    assert batch_of(jobs[1:], Limits()) == [jobs[1], jobs[3]]
    assert batch_of(jobs, Limits(max_batch=2)) == [jobs[0], jobs[2]]


def test_a_batch_has_no_more_places_than_allowed_padding_included():
    jobs = [job(10), job(40), job(10), job(10)]
    assert batch_of(jobs, Limits(max_batch_tokens=45)) == [jobs[0], jobs[2], jobs[3]]
    assert batch_of(jobs, Limits(max_batch_tokens=100)) == [jobs[0], jobs[1]]
    assert batch_of([job(1000), job(3)], Limits(max_batch_tokens=100))[0].length == 1005


class Told:
    """A job of a real prompt, and what it was told."""

    def __init__(self, model, *, max_new_tokens: int, streamed: bool = False):
        self.events: queue.Queue = queue.Queue()
        prompt = prepare(model, ask([], "What color?"), 1)
        self.job = Job(prompt, Sampling(max_new_tokens=max_new_tokens), streamed, self.events.put)

    def next(self) -> Piece | Exception:
        return self.events.get(timeout=60)


@contextmanager
def batching(model, **limits) -> Iterator[Batcher]:
    batcher = Batcher(model, Limits(**limits), Metrics())
    try:
        yield batcher
    finally:
        batcher.close()
        assert not batcher._thread.is_alive()


def test_a_job_that_is_given_up_frees_its_place_in_batch_and_queue(endless, pace):
    with batching(endless, max_batch=1) as batcher:
        running, waiting, last = Told(endless, max_new_tokens=400, streamed=True), Told(endless, max_new_tokens=2), Told(endless, max_new_tokens=2)
        batcher.submit(running.job)
        pace.allow(20)
        assert running.next().finish == ""
        batcher.submit(waiting.job)
        batcher.submit(last.job)
        batcher.cancel(waiting.job)
        assert (batcher.num_running, batcher.num_waiting) == (1, 1)
        batcher.cancel(running.job)
        pace.allow()
        assert last.next().finish == "length"
        assert waiting.events.empty()


def test_a_batch_waits_a_moment_for_a_job_that_is_being_read_and_no_longer(model, monkeypatch):
    monkeypatch.setattr("vlm.infer.server.batching.SECONDS_FOR_COMPANY", 60.0)
    with batching(model, max_batch=2) as batcher:
        first, second, third = (Told(model, max_new_tokens=2) for _ in range(3))
        batcher.expect()
        batcher.submit(first.job)
        batcher.submit(second.job)
        batcher.expect_no_more()
        first.next(), second.next()
        monkeypatch.setattr("vlm.infer.server.batching.SECONDS_FOR_COMPANY", 0.1)
        batcher.expect()  # of a client that never goes on
        batcher.submit(third.job)
        third.next()
    told = dict(line.rsplit(" ", 1) for line in batcher.metrics.text({}).splitlines())
    assert (told["vlm_batches_total"], told["vlm_batch_rows_total"]) == ("2", "3")


def test_a_batch_that_fails_is_told_and_does_not_end_the_others(model, caplog):
    with batching(model) as batcher:
        bad, good = Told(model, max_new_tokens=2), Told(model, max_new_tokens=2)
        bad.job.prompt = PreparedPrompt(torch.full((1, 3), model.language.image_token_id))  # an image token without its picture
        hook = model.language.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        batcher.submit(bad.job)
        assert str(bad.next()) == "out of memory"
        hook.remove()
        batcher.submit(good.job)
        assert good.next().num_tokens >= 1
    assert "A batch of 1 could not be answered" in caplog.text


def test_a_batch_without_memory_is_answered_in_halves(model, monkeypatch, caplog):
    sizes, answer = [], vlm.infer.server.batching.answer

    def with_room_for_two(model, asks):
        sizes.append(len(asks))
        if len(asks) > 2:
            raise torch.OutOfMemoryError("out of memory")
        answer(model, asks)

    monkeypatch.setattr("vlm.infer.server.batching.answer", with_room_for_two)
    monkeypatch.setattr("vlm.infer.server.batching.SECONDS_FOR_COMPANY", 60.0)
    with batching(model) as batcher:
        told = [Told(model, max_new_tokens=2) for _ in range(5)]
        batcher.expect()
        for one in told:
            batcher.submit(one.job)
        batcher.expect_no_more()
        assert len({one.next() for one in told}) == 1
    assert sizes == [5, 2, 3, 1, 2]
    assert "no memory for a batch of 5" in caplog.text


def test_what_is_open_at_the_end_is_told(slow):
    with batching(slow, max_batch=1) as batcher:
        running, waiting = Told(slow, max_new_tokens=400), Told(slow, max_new_tokens=2)
        batcher.submit(running.job)
        batcher.submit(waiting.job)
    assert isinstance(running.next(), Closed) and isinstance(waiting.next(), Closed)
    with pytest.raises(Closed):
        batcher.submit(waiting.job)
