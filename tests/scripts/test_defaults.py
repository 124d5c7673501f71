"""A model answers alike in sample.py, in server.py and on the page: their defaults are the same."""

from minigpt.arena.ui.sampling import SLIDERS
from sample import Settings as Sample
from server import Settings as Server

NAMES = ("temperature", "top_k", "top_p", "repetition_penalty")


def test_the_defaults_of_sampling_are_the_same_everywhere():
    page = {name: SLIDERS[name].default for name in NAMES}
    assert page == {name: getattr(Sample, name) for name in NAMES}
    assert page == {name: getattr(Server, name) for name in NAMES}
    lengths = (SLIDERS["max_tokens"].default, Sample.max_new_tokens, Server.default_max_tokens)
    assert len(set(lengths)) == 1
