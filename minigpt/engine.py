"""Generation: requests in, token ids out. The only generation loop in the project.

An Engine owns a model and a preallocated KV cache with a fixed number of slots. Ids in, ids out: it
knows no tokenizer. Requests may join and leave between steps.

    engine = Engine(model, n_vocab)
    for token in engine.stream(Request(ids, max_new_tokens=50)): …
    tickets = engine.generate([Request(…), Request(…)])     # .ids, .finish_reason of each

Past block_size the last half of the text is prefilled anew, and writing goes on: one rule, cached
or not (window_start).
"""

from collections import deque
from dataclasses import dataclass, field

import torch

from config.configurator import UserError
from model import KVCache


def window_start(start, length, block_size):
    """Where the context begins for a text of `length` tokens whose context began at `start`."""
    return start if length - start <= block_size else length - block_size // 2


@dataclass
class Request:
    """One text to continue, with its own sampling settings.

    ids: the prompt, at least one id. temperature 0 takes the likeliest token. top_k 0 and top_p 1
    keep every token. repetition_penalty > 1 makes tokens that stand in the text less likely
    (Keskar et al. 2019). seed None draws one. stop_ids end the text and are not part of it.
    """

    ids: list[int]
    max_new_tokens: int = 225
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()

    def problems(self):
        """What is wrong with the settings, a line each."""
        checks = [
            (len(self.ids) >= 1, "ids: the prompt is empty; expected at least one token"),
            (self.max_new_tokens >= 0, f"max_new_tokens={self.max_new_tokens}: expected 0 or more"),
            (
                0 <= self.temperature < float("inf"),
                f"temperature={self.temperature}: expected 0 (greedy) or more",
            ),
            (self.top_k >= 0, f"top_k={self.top_k}: expected 0 (all) or more"),
            (0 < self.top_p <= 1, f"top_p={self.top_p}: expected above 0, up to 1 (all)"),
            (
                0 < self.repetition_penalty < float("inf"),
                f"repetition_penalty={self.repetition_penalty}: expected above 0; 1 is none",
            ),
            (
                self.seed is None or -(2**63) <= self.seed < 2**64,
                f"seed={self.seed}: expected 64 bits, up to {2**64 - 1}",
            ),
        ]
        return [message for good, message in checks if not good]


@dataclass(eq=False)
class Ticket:
    """A submitted request and what has become of it."""

    request: Request
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)  # written so far
    finish_reason: str | None = None  # "stop", "length" or "cancelled" when it has ended
    rolled: bool = False  # the text outgrew block_size at least once
    start: int = 0  # where in prompt + ids the context begins
    cached: int = 0  # how many tokens of the context stand in the cache

    @property
    def text(self):
        """Prompt and written ids."""
        return self.request.ids + self.ids


class Engine:
    """See the module's docstring. n_slots: requests that run at once; others wait their turn."""

    def __init__(self, model, n_vocab=None, n_slots=8):
        self.model = model.eval()
        self.block_size = model.config.block_size
        self.n_vocab = n_vocab or model.config.n_rows  # rows above are padding, never written
        self.n_slots = n_slots
        weight = model.wte.weight
        self.device = weight.device
        self.cache = KVCache(model.config, n_slots, weight.device, weight.dtype)
        self.active = []  # tickets; the place in this list is the slot in the cache
        self.waiting = deque()
        self.n_ended = 0  # requests that have run to their ends or were cancelled

    def submit(self, request):
        """Queue a request; returns its Ticket. UserError names every invalid setting."""
        problems = request.problems()
        wrong = [i for i in request.ids if not 0 <= i < self.n_vocab]
        if wrong:
            problems.append(f"ids: {wrong[0]} among them; expected 0 to {self.n_vocab - 1}")
        if problems:
            raise UserError("\n".join(problems))
        generator = torch.Generator()
        if request.seed is None:
            generator.seed()
        else:
            generator.manual_seed(request.seed)
        ticket = Ticket(request, generator)
        if request.max_new_tokens == 0:
            ticket.finish_reason = "length"
        else:
            self.waiting.append(ticket)
        return ticket

    def cancel(self, ticket):
        """End a request; its slot is free at once."""
        if ticket.finish_reason is None:
            self._end(ticket, "cancelled")

    @torch.inference_mode()
    def step(self):
        """Write one token of every running request; returns [(ticket, id), …]. Tokens that end a
        text are not among them."""
        while self.waiting and len(self.active) < self.n_slots:
            self.active.append(self.waiting.popleft())
        if not self.active:
            return []
        for slot, ticket in enumerate(self.active):
            self._prefill(slot, ticket)
        # Now each lacks exactly its last token: one forward for all.
        tokens = [[ticket.text[-1]] for ticket in self.active]
        places = [[ticket.cached] for ticket in self.active]
        h = self._forward(tokens, places, 0, len(self.active))
        logits = self.model.logits(h[:, -1])[:, : self.n_vocab].float().cpu()  # (B, n_vocab)
        written = []
        for ticket, row in zip(list(self.active), logits, strict=True):
            ticket.cached += 1
            token = choose(row, ticket.text, ticket.request, ticket.generator)
            if token in ticket.request.stop_ids:
                self._end(ticket, "stop")
                continue
            ticket.ids.append(token)
            written.append((ticket, token))
            if len(ticket.ids) == ticket.request.max_new_tokens:
                self._end(ticket, "length")
        return written

    def stream(self, request):
        """Yield the ids of one request as they are written; a reader that stops cancels it."""
        ticket = request if isinstance(request, Ticket) else self.submit(request)
        read = 0
        try:
            # By the ticket, not by what step() returns: another reader may have taken the step.
            while ticket.finish_reason is None or read < len(ticket.ids):
                if read == len(ticket.ids):
                    self.step()
                else:
                    read += 1
                    yield ticket.ids[read - 1]
        finally:
            self.cancel(ticket)

    def generate(self, requests, on_end=lambda ticket: None):
        """Run all requests to their ends; returns their Tickets in order. on_end is called with
        each as it ends."""
        tickets = []
        try:
            for request in requests:
                tickets.append(self.submit(request))
            running, seen = set(tickets), None
            while running:
                self.step()
                if self.n_ended == seen:
                    continue  # nobody left: there is nobody to look for
                seen = self.n_ended
                for ticket in [t for t in running if t.finish_reason is not None]:
                    running.remove(ticket)
                    on_end(ticket)
        finally:
            for ticket in tickets:  # an error or Ctrl-C leaves none of them behind
                self.cancel(ticket)
        return tickets

    def _prefill(self, slot, ticket):
        """Bring all of the ticket's context but its last token into the cache."""
        text = ticket.text
        start = window_start(ticket.start, len(text), self.block_size)
        if start != ticket.start:
            ticket.start, ticket.cached, ticket.rolled = start, 0, True
        missing = text[start + ticket.cached : -1]
        if missing:
            places = list(range(ticket.cached, ticket.cached + len(missing)))
            self._forward([missing], [places], slot, slot + 1)
            ticket.cached += len(missing)

    def _forward(self, tokens, places, first, last):
        """Hidden states (B, T, C) of `tokens` at `places`, lists (B, T), in slots first to last."""
        x = torch.tensor(tokens, device=self.device)
        positions = torch.tensor(places, device=self.device)
        length = max(row[-1] for row in places) + 1
        return self.model(x, positions=positions, cache=self.cache.rows(first, last, length))

    def _end(self, ticket, reason):
        ticket.finish_reason = reason
        self.n_ended += 1
        if ticket in self.active:
            slot, last = self.active.index(ticket), len(self.active) - 1
            if slot != last:  # the running requests stay side by side in the first slots
                self.cache.move(last, slot)
                self.active[slot] = self.active[last]
            self.active.pop()
        else:
            self.waiting.remove(ticket)


def choose(logits, text, request, generator):
    """The next token's id from `logits` (n_vocab,) under a request's sampling settings.

    In the usual order: repetition penalty, temperature, top_k, top_p, then a draw.
    """
    if request.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(text)))
        score = logits[seen]
        penalty = request.repetition_penalty
        logits = logits.clone()
        logits[seen] = torch.where(score > 0, score / penalty, score * penalty)
    if request.temperature == 0:
        return int(logits.argmax())
    # Sorted once: top_k is then a prefix, top_p another. A tiny temperature may overflow or be 0 in
    # float32; the largest logit is taken off first, and 1e-30 is as good as 0, so that it cannot.
    k = min(request.top_k or len(logits), len(logits))
    values, ids = logits.topk(k)  # descending
    probabilities = torch.softmax((values - values[0]) / max(request.temperature, 1e-30), dim=0)
    if request.top_p < 1:
        # The smallest set whose probability reaches top_p: all up to the one that crosses it.
        kept = probabilities.cumsum(0) - probabilities < request.top_p
        kept[0] = True  # even where top_p is 0 in float32
        probabilities = probabilities * kept
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])
