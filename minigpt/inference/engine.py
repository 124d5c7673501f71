"""Generation: requests in, token ids out. The only generation loop in the project.

An Engine owns a model and a preallocated KV cache with a fixed number of slots. Ids in, ids out: it
knows no tokenizer. Requests join and leave between steps (continuous batching).

    engine = Engine(model, n_vocab)
    for token in engine.stream(Request(ids, max_new_tokens=50)): …
    tickets = engine.generate([Request(…), Request(…)])     # .ids, .finish_reason of each

Past block_size the last half of the text is prefilled anew, and writing goes on: one rule, cached
or not (window_start). A request with num_beams above 1 searches for a likely text as a whole: it
takes that many slots, and its text is written when the search ends.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from minigpt.common.errors import UserError
from minigpt.inference.kv_cache import KVCache

MOST_LOGPROBS = 20  # likeliest tokens that a request may ask to see


def window_start(start, length, block_size):
    """Where the context begins for a text of `length` tokens whose context began at `start`."""
    return start if length - start <= block_size else length - block_size // 2


class Token(NamedTuple):
    """A written token. Where its request asks for logprobs: the log of its probability as the model
    has it, before temperature and penalties, and (id, the same) of the likeliest, best first."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Request:
    """One text to continue, with its own sampling settings.

    ids: the prompt, at least one id. temperature 0 takes the likeliest token. top_k 0, top_p 1 and
    min_p 0 keep every token; min_p drops those whose probability is less than that share of the
    likeliest one's (Nguyen et al. 2024). repetition_penalty > 1 makes tokens that stand in the text
    less likely (Keskar et al. 2019); presence_penalty is taken off the logit of each token that was
    written, frequency_penalty as often as it was (OpenAI's). seed None draws one. stop_ids end the
    text and are not part of it. logprobs: how many of the likeliest tokens to report beside each,
    None for no logprobs; echo: report the prompt's tokens too.

    num_beams above 1 is beam search, at temperature 0 alone: so many texts grow side by side, and
    of those that end the best is written, by the sum of its log-probabilities, penalties applied,
    divided by length ** length_penalty (length in tokens; a stop id counts). A length_penalty
    above 0 favours long texts, below 0 short ones. The search ends when num_beams texts have ended
    and no running one is better at its present length; with early_stopping as soon as they have.
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
    early_stopping: bool = False

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
        return found + [
            f"{name}={getattr(self, name)}: expected {expected}"
            for name, (good, expected) in within.items()
            if not good
        ]


@dataclass(eq=False)
class Ticket:
    """A submitted request and what has become of it."""

    request: Request
    number: int  # in the order of submission
    generator: torch.Generator
    text: list[int]  # prompt and written ids
    tokens: list[Token] = field(default_factory=list)  # written so far
    prompt_tokens: list[Token] = field(default_factory=list)  # where the request says echo
    finish_reason: str | None = None  # "stop", "length" or "cancelled" when it has ended
    rolled: bool = False  # the text outgrew block_size at least once
    rows: list = field(default_factory=list)  # its Rows: one, or the beams, the best first
    ended: list = field(default_factory=list)  # beams that have ended, the best first

    @property
    def ids(self):
        """The written ids."""
        return self.text[len(self.request.ids) :]


@dataclass(eq=False)
class Row:
    """A text in a slot of the cache: its ticket's own, or one of the ticket's beams."""

    ticket: Ticket
    text: list[int]  # prompt and written ids
    tokens: list[Token]  # the written ones
    score: float = 0.0  # of a beam: its tokens' log-probabilities, penalties applied, summed
    start: int = 0  # where in the text the context begins
    cached: int = 0  # how many tokens of the context stand in the cache

    @property
    def missing(self):
        """How many tokens of the context do not stand in the cache."""
        return len(self.text) - self.start - self.cached


class Ended(NamedTuple):
    """A beam that has ended, and what it counts for: score / length ** length_penalty."""

    score: float
    tokens: list[Token]
    reason: str


class Engine:
    """See the module's docstring.

    n_vocab:       ids below it may be written; the model's rows above are padding
    n_slots:       requests that run at once (one with beams counts as many); others wait their turn
    prefill_chunk: tokens of prompts that one step reads, about: what the others wait for
    fixed_width:   every forward has the same shape, whoever else is there, so that a text is the
                   same to the bit with any neighbours. Without it, sums may be ordered otherwise
                   and logits differ in the sixth digit: the texts are the same wherever the two
                   best tokens are not that close.
    """

    def __init__(self, model, n_vocab=None, n_slots=8, prefill_chunk=64, fixed_width=False):
        self.model = model.eval()
        self.block_size = model.config.block_size
        self.n_vocab = n_vocab or model.config.padded_vocab_size
        self.n_slots, self.prefill_chunk, self.fixed_width = n_slots, prefill_chunk, fixed_width
        weight = model.wte.weight
        self.device = weight.device
        self.cache = KVCache(
            model.config, n_slots, weight.device, weight.dtype, kernels=model.kernels
        )
        self.active = []  # tickets that run
        self.rows = []  # their Rows; the place in this list is the slot in the cache
        self.waiting = deque()
        self.n_submitted = 0
        self.n_ended = 0  # requests that have run to their ends or were cancelled

    def check(self, request):
        """UserError names every invalid setting. Any thread may ask."""
        problems, n = request.problems(), len(request.ids)
        wrong = [i for i in request.ids if not 0 <= i < self.n_vocab]
        if wrong:
            problems.append(f"ids: {wrong[0]} among them; expected 0 to {self.n_vocab - 1}")
        if request.echo and n > self.block_size:
            problems.append(f"echo: the prompt has {n} tokens; expected at most {self.block_size}")
        if request.num_beams > self.n_slots:
            problems.append(
                f"num_beams={request.num_beams}: expected at most {self.n_slots}, the slots here"
            )
        if problems:
            raise UserError("\n".join(problems))

    def submit(self, request):
        """Queue a request; returns its Ticket. UserError as in check()."""
        self.check(request)
        generator = torch.Generator()
        if request.seed is None:
            generator.seed()
        else:
            generator.manual_seed(request.seed)
        ticket = Ticket(request, self.n_submitted, generator, list(request.ids))
        # A search begins with one row, and has its own texts until it ends.
        own = request.num_beams == 1
        text, tokens = (ticket.text, ticket.tokens) if own else (list(request.ids), [])
        ticket.rows = [Row(ticket, text, tokens)]
        self.n_submitted += 1
        if request.echo:
            ticket.prompt_tokens.append(Token(request.ids[0]))
        if request.max_new_tokens == 0 and not request.echo:
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
        """Write one token of every running request whose prompt has been read; returns
        [(ticket, id), …]. Tokens that end a text are not among them."""
        self._admit()
        self._prefill()
        ready = [t for t in self.active if all(row.missing == 1 for row in t.rows)]
        if not ready:
            return []
        # One forward for all. Who is not ready takes part with a token that does not count: what
        # it leaves in the cache is overwritten before anything looks at it.
        width = self.n_slots if self.fixed_width else len(self.rows)
        tokens, places = [[0] for _ in range(width)], [[0] for _ in range(width)]
        for slot, row in enumerate(self.rows):
            tokens[slot], places[slot] = [row.text[-1]], [row.cached]
        h = self._forward(tokens, places, slice(0, width))
        logits = self._logits(h[:, -1])  # (B, n_vocab)
        likeliest = logits.max(-1).indices.tolist()  # a third of the time of argmax()
        slots = {row: slot for slot, row in enumerate(self.rows)}
        at = [[slots[row] for row in ticket.rows] for ticket in ready]
        for row in (row for ticket in ready for row in ticket.rows):
            row.cached += 1
        written = []
        for ticket, own in zip(ready, at, strict=True):
            before = len(ticket.tokens)
            if ticket.request.num_beams == 1:
                self._write(ticket, logits[own[0]], likeliest[own[0]])
            else:
                self._grow(ticket, logits[own])
            written += [(ticket, token.id) for token in ticket.tokens[before:]]
        return written

    def stream(self, request):
        """Yield the ids of one request as they are written; a reader that stops cancels it."""
        ticket = request if isinstance(request, Ticket) else self.submit(request)
        read = 0
        try:
            # By the ticket, not by what step() returns: another reader may have taken the step.
            while ticket.finish_reason is None or read < len(ticket.tokens):
                if read == len(ticket.tokens):
                    self.step()
                else:
                    read += 1
                    yield ticket.tokens[read - 1].id
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

    def _admit(self):
        """Let those who wait run, in their order, while there are slots for all of their beams."""
        taken = sum(ticket.request.num_beams for ticket in self.active)
        while self.waiting and taken + self.waiting[0].request.num_beams <= self.n_slots:
            ticket = self.waiting.popleft()
            self.active.append(ticket)
            self.rows += ticket.rows
            taken += ticket.request.num_beams

    def _prefill(self):
        """Read about prefill_chunk tokens of what is missing, the oldest requests first: all of a
        context but its last token. Where a prompt is parted depends on the prompt alone."""
        for row in self.rows:
            self._roll(row)
        reading = [row for row in self.rows if row.missing > 1]
        reading.sort(key=lambda row: row.ticket.number)
        if reading:
            self._read(self._together(reading))
        for ticket in list(self.active):
            if ticket.request.max_new_tokens == 0 and ticket.rows[0].missing == 1:
                self._end(ticket, "length")  # it only wanted its prompt's logprobs

    def _roll(self, row):
        """Move the context on where the text has outgrown it."""
        start = window_start(row.start, len(row.text), self.block_size)
        if start != row.start:
            row.start, row.cached, row.ticket.rolled = start, 0, True

    def _together(self, reading):
        """As many of these rows as are read in one forward, padded to the longest of them."""
        together, longest = [], 0
        for row in reading:
            longest = max(longest, self._chunk(row))
            if together and (
                self.fixed_width or longest * (len(together) + 1) > self.prefill_chunk
            ):
                break
            together.append(row)
        return together

    def _chunk(self, row):
        """How many tokens of its context are read next."""
        return min(row.missing - 1, self.prefill_chunk)

    def _read(self, rows):
        """Bring the next chunk of each row's context into the cache."""
        counts = [self._chunk(row) for row in rows]
        width = self.prefill_chunk if self.fixed_width else max(counts)
        tokens, places = [], []
        for row, count in zip(rows, counts, strict=True):
            first = row.start + row.cached
            read = row.text[first : first + count]
            at = list(range(row.cached, row.cached + count))
            # The same token at the same place, again and again, leaves the same in the cache.
            tokens.append(read + read[-1:] * (width - count))
            places.append(at + at[-1:] * (width - count))
        hidden = self._forward(tokens, places, [self.rows.index(row) for row in rows])
        for row, count, h in zip(rows, counts, hidden, strict=True):
            if row.ticket.request.echo and not row.ticket.rolled:
                self._echo(row, h[:count])
            row.cached += count

    def _echo(self, row, hidden):
        """Note the logprobs of the prompt's tokens that follow those of `hidden` (T, C)."""
        ticket = row.ticket
        for h, token in zip(hidden, row.text[row.cached + 1 :], strict=False):
            ticket.prompt_tokens.append(_with_logprobs(self._logits(h), token, ticket))

    def _forward(self, tokens, places, slots):
        """Hidden states (B, T, C) of `tokens` at `places`, lists (B, T), in the cache's `slots`."""
        x = torch.tensor(tokens, device=self.device)
        positions = torch.tensor(places, device=self.device)
        longest = max(row[-1] for row in places) + 1
        length = self.block_size if self.fixed_width else longest
        return self.model(x, positions=positions, cache=self.cache.rows(slots, length))

    def _logits(self, h):
        """Hidden states (…, C) → float32 logits (…, n_vocab) on the CPU."""
        return self.model.logits(h)[..., : self.n_vocab].float().cpu()

    def _next_token(self, ticket, logits, likeliest):
        """The Token that follows, from `logits` (n_vocab,), whose largest is at `likeliest`."""
        request = ticket.request
        if request.temperature == 0 and not request.has_penalties:
            token = likeliest
        else:
            token = choose(logits, request, ticket.generator, ticket.text)
        return Token(token) if request.logprobs is None else _with_logprobs(logits, token, ticket)

    def _write(self, ticket, logits, likeliest):
        """Add the token that follows to the text, or end it."""
        token = self._next_token(ticket, logits, likeliest)
        if token.id in ticket.request.stop_ids:
            self._end(ticket, "stop")
            return
        ticket.text.append(token.id)
        ticket.tokens.append(token)
        if len(ticket.tokens) == ticket.request.max_new_tokens:
            self._end(ticket, "length")

    def _grow(self, ticket, logits):
        """Let the beams of a ticket grow by the likeliest tokens over all of them, or write its
        text where the search is over. logits (n_rows, n_vocab)."""
        request, n = ticket.request, ticket.request.num_beams
        length = len(ticket.rows[0].tokens) + 1
        growing = []
        for rank, (score, row, token) in enumerate(_candidates(ticket, logits)):
            stopped = token.id in request.stop_ids
            if not stopped and length < request.max_new_tokens:
                growing.append((score, row, token))
            elif rank < n:  # a worse end is worth less than n beams that go on
                tokens, reason = ([], "stop") if stopped else ([token], "length")
                score = _per_length(score, length, request)
                ticket.ended.append(Ended(score, [*row.tokens, *tokens], reason))
        ticket.ended = sorted(ticket.ended, key=lambda end: -end.score)[:n]
        if growing and not _is_over(ticket, _per_length(growing[0][0], length, request)):
            self._branch(ticket, growing[:n])
            return
        best = ticket.ended[0]
        ticket.tokens += best.tokens
        ticket.text += [token.id for token in best.tokens]
        self._end(ticket, best.reason)

    def _branch(self, ticket, growing):
        """Make [(score, parent, token), …] the rows of a ticket. The first child of a parent stays
        in its slot; each other one gets a copy of its cache, in a slot that a childless row leaves
        or in a new one."""
        parents = {parent for _, parent, _ in growing}
        free = [row for row in ticket.rows if row not in parents]
        children, sources, targets = [], [], []
        for score, parent, token in growing:
            text, tokens = [*parent.text, token.id], [*parent.tokens, token]
            if parent in parents:
                parents.remove(parent)
                row = parent
            else:
                row = free.pop() if free else self._new_row(ticket)
                sources.append(self.rows.index(parent))
                targets.append(self.rows.index(row))
            children.append((row, text, tokens, score, parent.start, parent.cached))
        if sources:  # no target is a source: sources have children, targets had none
            self.cache.move(sources, targets, growing[0][1].cached)
        for row, *what in children:  # only now: a parent's text was needed for all its children
            row.text, row.tokens, row.score, row.start, row.cached = what
        ticket.rows = [row for row, *_ in children]

    def _new_row(self, ticket):
        """A Row in the next slot, which was kept for this ticket."""
        self.rows.append(Row(ticket, [], []))
        return self.rows[-1]

    def _end(self, ticket, reason):
        ticket.finish_reason = reason
        self.n_ended += 1
        if ticket in self.active:
            self.active.remove(ticket)
            for row in ticket.rows:
                self._free(row)
        else:
            self.waiting.remove(ticket)
        ticket.rows = []

    def _free(self, row):
        slot, last = self.rows.index(row), len(self.rows) - 1
        if slot != last:  # the rows that run stay side by side in the first slots
            self.cache.move(last, slot, self.rows[last].cached)
            self.rows[slot] = self.rows[last]
        self.rows.pop()


def _candidates(ticket, logits):
    """[(score, row, token), …]: by which tokens the beams of a ticket grow best, from the logits
    (n_rows, n_vocab) of its rows; with those that end a text enough that num_beams go on."""
    request, rows = ticket.request, ticket.rows
    scores = logits.log_softmax(-1)
    if request.has_penalties:
        pairs = zip(scores, rows, strict=True)
        scores = torch.stack([_penalised(own, request, row.text) for own, row in pairs])
    scores = (scores + torch.tensor([[row.score] for row in rows])).flatten()
    # Of a row at most one candidate is each stop id.
    most = request.num_beams * (1 + len(request.stop_ids))
    found = []
    values, places = scores.topk(min(most, len(scores)))
    for score, at in zip(values.tolist(), places.tolist(), strict=True):
        row, token = divmod(at, logits.size(1))
        found.append((score, rows[row], _with_logprobs(logits[row], token, ticket)))
    return found


def _per_length(score, length, request):
    """What a beam of `length` tokens counts for beside others."""
    return score / length**request.length_penalty


def _is_over(ticket, best_running):
    """Whether a search ends here, its best running beam counting for `best_running`."""
    request, ended = ticket.request, ticket.ended
    if len(ended) < request.num_beams:
        return False
    return request.early_stopping or best_running <= ended[-1].score


def _with_logprobs(logits, token, ticket):
    """`token` (an id) as a Token, from `logits` (n_vocab,)."""
    n = ticket.request.logprobs
    if n is None:
        return Token(token)
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(min(n, len(logprobs)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Token(token, float(logprobs[token]), top)


def choose(logits, request, generator, text):
    """The next token's id from `logits` (n_vocab,) under a request's sampling settings.

    text: the prompt and what was written. In the usual order: penalties, temperature, top_k, top_p,
    min_p, then a draw.
    """
    if request.has_penalties:
        logits = _penalised(logits, request, text)
    if request.temperature == 0:
        return int(logits.argmax())
    ids = None
    if 0 < request.top_k < len(logits):
        logits, ids = logits.topk(request.top_k)
    # A tiny temperature may overflow or be 0 in float32; the largest logit is taken off first, and
    # 1e-30 is as good as 0, so that it cannot.
    logits = (logits - logits.max()) / max(request.temperature, 1e-30)
    probabilities = torch.softmax(logits, dim=0)
    if request.top_p < 1:
        # The smallest set whose probability reaches top_p: all up to the one that crosses it.
        probabilities, order = probabilities.sort(descending=True, stable=True)
        ids = order if ids is None else ids[order]
        kept = probabilities.cumsum(0) - probabilities < request.top_p
        kept[0] = True  # even where top_p is 0 in float32
        probabilities = probabilities * kept
    if request.min_p > 0:
        probabilities = probabilities * (probabilities >= request.min_p * probabilities.max())
    drawn = int(torch.multinomial(probabilities, 1, generator=generator))
    return drawn if ids is None else int(ids[drawn])


def _penalised(logits, request, text):
    """`logits` less what the request takes off tokens that stand in the text already."""
    logits = logits.clone()
    seen = torch.tensor(sorted(set(text)))
    score, penalty = logits[seen], request.repetition_penalty
    logits[seen] = torch.where(score > 0, score / penalty, score * penalty)
    written = Counter(text[len(request.ids) :])
    if written:
        times = torch.tensor(list(written.values()))
        off = request.frequency_penalty * times + request.presence_penalty
        logits[list(written)] -= off
    return logits
