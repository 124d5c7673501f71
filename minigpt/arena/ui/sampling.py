"""The sampling settings on the page: sliders and the seed, with their defaults."""

import secrets
from typing import NamedTuple

import gradio as gr

from minigpt.common.errors import UserError


class Slider(NamedTuple):
    """A setting: its range, its default and its step."""

    low: float
    high: float
    default: float
    step: float


# The defaults are those of sample.py and server.py, so that a model answers alike everywhere.
SLIDERS = {
    "temperature": Slider(0, 2, 0.1, 0.05),
    "top_k": Slider(0, 200, 20, 1),
    "top_p": Slider(0.05, 1, 1, 0.05),
    "repetition_penalty": Slider(0.8, 2, 1, 0.05),
    "max_tokens": Slider(1, 1024, 225, 1),
}
INTEGERS = ("top_k", "max_tokens")


class SamplingControls:
    """The sliders and the seed of one tab. prefix: of their elem_ids."""

    def __init__(self, i18n, prefix):
        with gr.Accordion(i18n("settings"), open=False):
            self._by_name = {
                name: gr.Slider(
                    slider.low,
                    slider.high,
                    slider.default,
                    step=slider.step,
                    label=i18n(name),
                    elem_id=f"{prefix}-{name}",
                )
                for name, slider in SLIDERS.items()
            }
            self._by_name["seed"] = gr.Textbox(
                "", label=i18n("seed"), max_lines=1, elem_id=f"{prefix}-seed"
            )
        self.components = set(self._by_name.values())

    def read(self, values, strings):
        """The sampling settings among the values of an event: {component: value} → name → value."""
        by_name = {name: values[component] for name, component in self._by_name.items()}
        return sampling_settings(by_name, strings)


def sampling_settings(values, strings):
    """Settings by name from the sliders' values and the text of the seed; a random seed if it is
    empty. UserError if the seed is not a number of 64 bits."""
    settings = dict(values, **{name: int(values[name]) for name in INTEGERS})
    text = str(values["seed"] or "").strip()
    try:
        seed = int(text) if text else secrets.randbits(31)
        if not -(2**63) <= seed < 2**63:
            raise ValueError
    except ValueError:
        raise UserError(strings["bad_seed"]) from None
    return {**settings, "seed": seed}
