"""Request: one text to generate, with its sampling settings, and why none is taken. Importing it
does not load torch."""

from dataclasses import dataclass

from minigpt.common.errors import UserError

MOST_LOGPROBS = 20  # limit of Request.logprobs


class QueueFull(UserError):
    """The waiting queue is full: try again later."""


class SchedulerStopped(UserError):
    """The scheduler is draining or has stopped: no new requests."""


@dataclass
class Request:
    """One text to continue, with its own sampling settings.

    ids: the prompt, at least one id. temperature 0 takes the most likely token. top_k 0, top_p 1
    and min_p 0 keep every token; min_p drops tokens whose probability is below that fraction of the
    highest one (Nguyen et al. 2024). repetition_penalty above 1 makes tokens of the prompt and the
    text less likely (Keskar et al. 2019); presence_penalty is subtracted from the logit of each
    token that was generated, frequency_penalty once for each time (OpenAI). seed None: a random
    one. stop_ids end the text and are not part of it. logprobs: how many of the most likely tokens
    to report with each token, None for no logprobs. echo: report the prompt's tokens too.

    num_beams above 1 is beam search, at temperature 0 only: num_beams texts grow in parallel. The
    best finished one wins, by the sum of its log-probabilities after penalties divided by
    length ** length_penalty (length in tokens, a stop id included). A length_penalty above 0
    favours long texts, below 0 short ones. The search ends when num_beams texts have finished and
    no running one has a better score at its present length.

    constraint: which ids may follow, for this request alone: an object whose allowed(generated ids)
    gives a bool tensor (n_vocab,), True for at least one id; None: all. It is called once a step.
    """

    ids: list[int]
    max_new_tokens: int = 225
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    num_beams: int = 1
    length_penalty: float = 1.0
    constraint: object | None = None

    @property
    def has_penalties(self):
        """Whether the text so far changes what is likely."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )

    def problems(self):
        """What is wrong with the settings, a line each."""
        infinite = float("inf")
        within = {
            "max_new_tokens": (self.max_new_tokens >= 0, "0 or more"),
            "temperature": (0 <= self.temperature < infinite, "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0, up to 1 (all)"),
            "min_p": (0 <= self.min_p <= 1, "0 (all) to 1"),
            "repetition_penalty": (
                0.01 <= self.repetition_penalty <= 100,
                "0.01 to 100; 1 is none",
            ),
            "presence_penalty": (abs(self.presence_penalty) < infinite, "a number; 0 is none"),
            "frequency_penalty": (abs(self.frequency_penalty) < infinite, "a number; 0 is none"),
            "seed": (
                self.seed is None or -(2**63) <= self.seed < 2**64,
                f"64 bits, up to {2**64 - 1}",
            ),
            "logprobs": (
                self.logprobs is None or 0 <= self.logprobs <= MOST_LOGPROBS,
                f"0 to {MOST_LOGPROBS}, or none",
            ),
            "num_beams": (self.num_beams >= 1, "1 (none) or more"),
            "length_penalty": (abs(self.length_penalty) <= 10, "-10 to 10; 0 is none"),
        }
        found = [] if self.ids else ["ids: the prompt is empty; expected at least one token"]
        if self.num_beams > 1 and self.temperature != 0:
            found.append(
                f"num_beams={self.num_beams}: beam search draws nothing; expected temperature=0, "
                f"not {self.temperature}"
            )
        if self.num_beams > 1 and self.constraint is not None:
            found.append(f"num_beams={self.num_beams}: beam search takes no constraint; expected 1")
        return found + [
            f"{name}={getattr(self, name)}: expected {expected}"
            for name, (good, expected) in within.items()
            if not good
        ]
