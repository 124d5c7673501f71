"""The thread that owns the models: many readers, limits, faults, stopping."""

import threading
import time

import pytest

from minigpt.common.errors import UserError
from minigpt.inference.engine import Engine, Request
from minigpt.inference.scheduler import QueueFull, QueueLimits, RequestScheduler, SchedulerStopped

N_VOCAB = 50


@pytest.fixture
def make_scheduler(tiny_model):
    """make_scheduler(names, limits, n_slots): over tiny models; stopped at the end."""
    schedulers = []

    def make(names=("a",), limits=None, n_slots=2):
        models = {name: tiny_model(seed=i, block_size=32) for i, name in enumerate(names)}
        engines = {name: Engine(model, N_VOCAB, n_slots) for name, model in models.items()}
        schedulers.append(RequestScheduler(engines, limits or QueueLimits()))
        return schedulers[-1]

    yield make
    for scheduler in schedulers:
        scheduler.drain(0)


def ids_of(stream):
    return [token.id for token in stream if token is not None]


def alone(model, request):
    return Engine(model, N_VOCAB).generate([request])[0].ids


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_batch_has_what_is_generated_during_the_pause(make_scheduler):
    """The end, too, which ends the pause."""
    scheduler = make_scheduler()
    request = Request([3, 4], 20, seed=1)
    (stream,) = scheduler.submit("a", [request])
    batches = stream.batches(lambda: 600)
    (tokens, ended), *more = [batch for batch in batches if batch != ([], False)]
    assert [token.id for token in tokens] == alone(scheduler.engines["a"].model, request)
    assert ended and not more
    (stream,) = scheduler.submit("a", [Request([3, 4], 0)])
    assert list(stream.batches(lambda: 600)) == [([], True)]


ENDLESS = dict(ids=[3, 4], max_new_tokens=10**6)


def test_many_readers_of_several_models(make_scheduler):
    scheduler, texts = make_scheduler(("a", "b")), {}

    def read(name, seed):
        (stream,) = scheduler.submit(name, [Request([seed + 1, 2], 20, seed=seed)])
        texts[name, seed] = ids_of(stream), stream.finish_reason

    readers = [threading.Thread(target=read, args=(n, i)) for n in "ab" for i in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    for (name, seed), found in texts.items():
        wanted = alone(scheduler.engines[name].model, Request([seed + 1, 2], 20, seed=seed))
        assert found == (wanted, "length")
    assert len(texts) == 16 and scheduler.counts() == (0, 0)


def test_several_at_once_are_all_or_none(make_scheduler):
    scheduler = make_scheduler()
    streams = scheduler.submit("a", [Request([3], 5, seed=i) for i in range(3)])
    assert [len(ids_of(stream)) for stream in streams] == [5, 5, 5]
    with pytest.raises(UserError, match="top_p=7"):
        scheduler.submit("a", [Request([3], 5), Request([3], 5, top_p=7)])
    assert scheduler.counts() == (0, 0)


def test_cancelling_frees_the_slot_and_ends_the_stream(make_scheduler):
    scheduler = make_scheduler(n_slots=1)
    (first,) = scheduler.submit("a", [Request(**ENDLESS)])
    (second,) = scheduler.submit("a", [Request([5], 3)])  # waits
    assert next(iter(first)) is not None and scheduler.counts() == (1, 1)
    first.cancel()
    assert len(ids_of(second)) == 3
    ids_of(first)  # what was generated before that, perhaps nothing more
    assert first.finish_reason == "cancelled"
    first.cancel()  # once more does no harm
    (waiting,) = scheduler.submit("a", [Request([5], 3)])
    waiting.cancel()
    assert len(ids_of(waiting)) <= 3 and scheduler.counts() == (0, 0)


def test_a_full_queue_and_time_limits(make_scheduler):
    limits = QueueLimits(max_waiting=1, queue_seconds=0.3, total_seconds=1.0)
    scheduler = make_scheduler(limits=limits, n_slots=1)
    (running,) = scheduler.submit("a", [Request(**ENDLESS)])
    (waiting,) = scheduler.submit("a", [Request(**ENDLESS)])
    with pytest.raises(QueueFull, match="2 requests"):
        scheduler.submit("a", [Request([3], 1)])
    assert ids_of(waiting) == [] and waiting.finish_reason == "timeout"
    assert "0.3 s" in waiting.error
    assert ids_of(running) and running.finish_reason == "timeout" and "1 s" in running.error
    assert len(ids_of(scheduler.submit("a", [Request([3], 4)])[0])) == 4  # there is room again


def test_a_waiting_reader_sees_none_now_and_then(make_scheduler):
    scheduler = make_scheduler(n_slots=1)
    (running,) = scheduler.submit("a", [Request(**ENDLESS)])
    (waiting,) = scheduler.submit("a", [Request([3], 1)])
    assert next(iter(waiting)) is None
    running.cancel()


def test_a_fault_ends_its_requests_and_the_host_lives_on(make_scheduler, capsys):
    scheduler = make_scheduler(("good", "bad"))
    model = scheduler.engines["bad"].model
    hook = model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError("full")))
    (other,) = scheduler.submit("good", [Request([3], 30)])
    (stream,) = scheduler.submit("bad", [Request([3], 5)])
    assert ids_of(stream) == [] and stream.finish_reason == "error"
    assert "full" not in stream.error  # for the client; the log has the whole
    assert "MemoryError" in capsys.readouterr().err
    assert len(ids_of(other)) == 30
    hook.remove()
    assert len(ids_of(scheduler.submit("bad", [Request([3], 5)])[0])) == 5
    assert scheduler.counts() == (0, 0)


def test_draining_waits_and_refuses(make_scheduler):
    scheduler = make_scheduler()
    (stream,) = scheduler.submit("a", [Request([3], 40)])
    assert scheduler.drain(30) == 0 and scheduler.draining
    assert len(ids_of(stream)) == 40 and stream.finish_reason == "length"
    with pytest.raises(SchedulerStopped):
        scheduler.submit("a", [Request([3], 1)])


def test_what_outlasts_the_draining_is_cancelled(make_scheduler):
    scheduler = make_scheduler()
    (stream,) = scheduler.submit("a", [Request(**ENDLESS)])
    until(lambda: stream.first_token)
    assert scheduler.drain(0.05) == 1
    assert ids_of(stream) and stream.finish_reason == "cancelled"
    stream.cancel()  # nobody is there to hear it: harmless
