"""What a server serves: its models, settings and state, without HTTP.

service = Service(Options())          # a server may listen already; it answers 503 …
service.open({"sft": served}, host)   # … until here
"""

import logging
from dataclasses import dataclass, field
from functools import cached_property

from minigpt.common.report import one_line
from minigpt.data.prompts import stop_ids
from minigpt.openai.formats import TokenTexts
from minigpt.openai.request_reader import RequestLimits, RequestRefused
from minigpt.serving.allowed_hosts import AllowedHosts
from minigpt.serving.json_constraint import token_table
from minigpt.tokenizer.chat_template import kind_of
from minigpt.tokenizer.huggingface import SPECIAL_TEXTS

MOST_NAMES = 1000  # of ignored fields that are remembered: senders choose them

log = logging.getLogger("minigpt")

DESCRIPTIONS = {
    "plain": "continues a text; of a conversation it reads the last user message alone",
    "qa": "answers a question; of a conversation it reads the last user message alone",
    "chat": "answers a conversation; it reads all turns",
}


@dataclass(frozen=True)
class Served:
    """A model as clients see it; its engine in the scheduler has the same name."""

    name: str
    tokenizer: object
    prompt_format: str
    block_size: int
    n_params: int
    step: int
    created: int  # seconds since 1970

    @cached_property
    def token_texts(self):
        """How the answers write its tokens."""
        special = self.tokenizer.special
        return TokenTexts(self.tokenizer, {i: SPECIAL_TEXTS[name] for name, i in special.items()})

    @cached_property
    def json_table(self):
        """The vocabulary for JsonConstraint. UserError where its library is not installed."""
        return token_table(self.tokenizer, stop_ids(self.tokenizer))

    def as_dict(self, limits):
        """The model as /v1/models lists it, by the names that clients look for: some read OpenAI's
        fields, some vLLM's (max_model_len), some OpenRouter's (name, context_length)."""
        facts = ("name", "created", "n_params", "step")
        return dict(
            {name: getattr(self, name) for name in facts},
            id=self.name,
            object="model",
            owned_by="minigpt",
            prompt_format=kind_of(self.prompt_format),
            description=DESCRIPTIONS[kind_of(self.prompt_format)],
            max_model_len=self.block_size,
            context_length=self.block_size,
            max_output_tokens=limits.max_tokens,
        )


@dataclass(frozen=True)
class Options:
    """The server's settings. defaults: sampling settings that a request does not give."""

    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()  # "*" for all
    allowed_hosts: AllowedHosts = field(default_factory=AllowedHosts)
    log_text: bool = False
    truncate: str = "none"  # or "oldest": what happens to a conversation that is too long
    limits: RequestLimits = field(default_factory=RequestLimits)
    defaults: dict = field(
        default_factory=lambda: dict(temperature=0.1, top_k=20, top_p=1.0, repetition_penalty=1.0)
    )


class Service:
    """What the views need: options from the start, models once they are loaded."""

    def __init__(self, options, models=None, host=None):
        self.options, self.models, self.host = options, models or {}, host
        self._named = set()  # ignored fields that the log has

    def open(self, models, host):
        """Take requests. models: name → Served; host: a RequestScheduler with these engines."""
        self.models, self.host = dict(models), host

    def log_ignored(self, names):
        """Log the names of fields that change no answer, each once."""
        new = [name for name in names if name not in self._named]
        if new and len(self._named) < MOST_NAMES:
            self._named.update(new)
            log.info(f"fields that change no answer are ignored: {one_line(', '.join(new))}")

    @property
    def status(self):
        """ "loading", "ok" or "draining"."""
        if self.host is None:
            return "loading"
        return "draining" if self.host.draining else "ok"

    def check_loaded(self):
        """RequestRefused (503) while there are no models yet."""
        if self.host is None:
            raise RequestRefused(
                503, "the models are still being loaded: try again soon", code="loading"
            )

    def served(self, name):
        """The model called `name`; None: the only one. RequestRefused where there is none."""
        self.check_loaded()
        names = ", ".join(self.models)
        if name is None and len(self.models) > 1:
            raise RequestRefused(400, f"model: say which one of {names}", "model")
        if name is not None and name not in self.models:
            shown = name if len(name) <= 100 else name[:100] + "…"
            message = f"model: there is no {shown!r} here; there is {names}"
            raise RequestRefused(404, message, "model", "model_not_found")
        return self.models[name or next(iter(self.models))]
