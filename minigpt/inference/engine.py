"""Generation: requests in, token ids out. The only generation loop in the project.

An Engine owns a model and a preallocated KV cache with a fixed number of slots. It knows no
tokenizer. Requests join and leave between steps (continuous batching).

    engine = Engine(model, n_vocab)
    for token in engine.stream(Request(ids, max_new_tokens=50)): …
    tickets = engine.generate([Request(…), Request(…)])     # .ids, .finish_reason of each

A text may outgrow block_size: then the last half block is prefilled again as the new context, and
generation continues. The rule is the same with and without a cache (window_start). A request with
num_beams above 1 is a beam search: it takes num_beams slots, and its text is complete at once, when
the search ends.

With draft_tokens a step also reads a draft: the tokens that prompt lookup expects next. Each token
of the text is drawn from the model's own logits with the request's own random numbers, as without a
draft; the draft is kept as long as it agrees. So the text is the same, in fewer steps.
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from minigpt.common.errors import UserError
from minigpt.inference.decoding.beam_search import extend
from minigpt.inference.decoding.prompt_lookup import PromptLookup
from minigpt.inference.kv_cache import KVCache
from minigpt.inference.request import Request
from minigpt.inference.sampling import Token, sample, with_logprobs

PREFILL_CHUNK = 64  # prompt tokens that one step reads, about: the other requests wait that long


def window_start(start, length, block_size):
    """Where the context begins for a text of `length` tokens whose context began at `start`."""
    return start if length - start <= block_size else length - block_size // 2


@dataclass(eq=False)
class Ticket:
    """A submitted request and its result so far."""

    request: Request
    number: int  # in the order of submission
    generator: torch.Generator
    text: list[int]  # prompt and generated ids
    tokens: list[Token] = field(default_factory=list)  # generated so far
    prompt_tokens: list[Token] = field(default_factory=list)  # if the request has echo
    stop: Token | None = None  # the stop id that ended it, which is not part of the text
    finish_reason: str | None = None  # "stop", "length" or "cancelled" when it has ended
    rolled: bool = False  # the text outgrew block_size at least once
    n_drafted: int = 0  # tokens that prompt lookup guessed …
    n_accepted: int = 0  # … and those that were right
    rows: list = field(default_factory=list)  # its Rows: one, or the beams, best first
    ended: list = field(default_factory=list)  # finished beams (Hypothesis), best first

    @property
    def ids(self):
        """The generated ids."""
        return self.text[len(self.request.ids) :]


@dataclass(eq=False)
class Row:
    """A text in a slot of the cache: its ticket's own, or one of the ticket's beams."""

    ticket: Ticket
    text: list[int]  # prompt and generated ids
    tokens: list[Token]  # the generated ones
    score: float = 0.0  # of a beam: sum of its tokens' log-probabilities after penalties
    start: int = 0  # where in the text the context begins
    cached: int = 0  # how many tokens of the context are in the cache
    lookup: PromptLookup | None = None  # not of a beam

    @property
    def missing(self):
        """How many tokens of the context are not in the cache."""
        return len(self.text) - self.start - self.cached


class Engine:
    """See the module's docstring.

    n_vocab: ids below it may be generated; the model's rows above are padding
    n_slots: requests that run at once (one with beams counts num_beams times); others wait
    prefill: prompt tokens that one step reads, about; None: PREFILL_CHUNK. More is faster where
        nobody waits for the first token
    draft_tokens: tokens that one step reads ahead by prompt lookup, over all its texts: each gets
        its share of them, so that many texts at once get none. 0: no prompt lookup

    A text does not depend on the requests beside it, nor on draft_tokens. In floating point a
    larger batch may add in another order, and logits differ in the sixth digit: the texts are the
    same wherever the two best tokens are not that close.
    """

    def __init__(self, model, n_vocab=None, n_slots=8, prefill=None, draft_tokens=0):
        self.model = model.eval()
        self.block_size = model.config.block_size
        self.n_vocab = n_vocab or model.config.padded_vocab_size
        self.n_slots, self.prefill = n_slots, prefill or PREFILL_CHUNK
        self.draft_tokens = draft_tokens
        weight = model.wte.weight
        self.device = weight.device
        self.cache = KVCache(model.config, n_slots, weight.device, weight.dtype)
        self.active = []  # running tickets
        self.rows = []  # their Rows; the index in this list is the slot in the cache
        self.waiting = deque()
        self.n_submitted = 0
        self.n_ended = 0  # requests that have finished or were cancelled

    def check(self, request):
        """UserError names every invalid setting. Any thread may call it."""
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
        # A beam search starts with one row; its texts are not the ticket's until it ends.
        own = request.num_beams == 1
        text, tokens = (ticket.text, ticket.tokens) if own else (list(request.ids), [])
        lookup = PromptLookup(text) if own and self.draft_tokens else None
        ticket.rows = [Row(ticket, text, tokens, lookup=lookup)]
        self.n_submitted += 1
        if request.echo:
            ticket.prompt_tokens.append(Token(request.ids[0]))
        if request.max_new_tokens == 0 and not request.echo:
            ticket.finish_reason = "length"
        else:
            self.waiting.append(ticket)
        return ticket

    def cancel(self, ticket):
        """End a request; its slot is free at once. No effect on one that has ended."""
        if ticket.finish_reason is None:
            self._end(ticket, "cancelled")

    @torch.inference_mode()
    def step(self):
        """Generate one token of every running request whose prompt has been read; returns
        [(ticket, id), …]. Stop ids are not among them."""
        self._admit()
        self._prefill()
        ready = [t for t in self.active if all(row.missing == 1 for row in t.rows)]
        return self._decode(ready) if ready else []

    def _decode(self, ready):
        """One forward pass, one more token for each of these tickets, and more where a draft is
        right: [(ticket, id), …]."""
        rows = list(self.rows)  # self.rows changes when a text ends
        drafts = self._drafts(ready)
        # A row that is not ready takes part with a dummy token: what that leaves in the cache is
        # overwritten before anything reads it.
        tokens = [[row.text[-1], *drafts.get(row, ())] for row in rows]
        h = self._forward(tokens, [row.cached for row in rows], slice(0, len(rows)))
        counts = [len(each) for each in tokens]
        if max(counts) == 1:
            h = h[:, 0]
        else:
            h = torch.cat([each[:count] for each, count in zip(h, counts, strict=True)])
        logits = self._logits(h)  # (sum of counts, n_vocab)
        first = dict(zip(rows, accumulate(counts, initial=0), strict=False))

        def of(some, ahead=0):
            """The logits of these rows after `ahead` tokens of their drafts; those of all rows are
            not copied."""
            chosen = [first[row] + ahead for row in some]
            return logits if chosen == list(range(len(logits))) else logits[chosen]

        for row in (row for ticket in ready for row in ticket.rows):
            row.cached += 1 + len(drafts.get(row, ()))
        before = [len(ticket.tokens) for ticket in ready]
        single = [ticket for ticket in ready if ticket.request.num_beams == 1]
        self._extend_texts(single, drafts, of)
        for ticket in ready:
            if ticket.request.num_beams > 1:
                self._extend_beams(ticket, of(ticket.rows))
        return [
            (ticket, token.id)
            for ticket, n in zip(ready, before, strict=True)
            for token in ticket.tokens[n:]
        ]

    def _drafts(self, ready):
        """Row → the ids that probably follow its text, of those rows that have any."""
        most = self.draft_tokens // len(self.rows)
        drafts = {}
        for row in (row for ticket in ready for row in ticket.rows if most and row.lookup):
            left = row.ticket.request.max_new_tokens - len(row.tokens)
            # The last token needs no reading; none may be read beyond the block.
            draft = row.lookup.draft(min(most, left - 1, self.block_size - row.cached - 1))
            if draft:
                drafts[row] = draft
        return drafts

    def stream(self, request):
        """Yield the ids of one request as they are generated; closing the iterator cancels it."""
        ticket = request if isinstance(request, Ticket) else self.submit(request)
        read = 0
        try:
            # Read from the ticket, not from step(): another reader may have made the step.
            while ticket.finish_reason is None or read < len(ticket.tokens):
                if read == len(ticket.tokens):
                    self.step()
                else:
                    read += 1
                    yield ticket.tokens[read - 1].id
        finally:
            self.cancel(ticket)

    def generate(self, requests, on_end=lambda ticket: None):
        """Run all requests until they finish; returns their Tickets in order. on_end(ticket) is
        called as each one ends."""
        tickets = []
        try:
            for request in requests:
                tickets.append(self.submit(request))
            running, seen = set(tickets), None
            while running:
                self.step()
                if self.n_ended == seen:
                    continue  # none has ended in this step
                seen = self.n_ended
                for ticket in [t for t in running if t.finish_reason is not None]:
                    running.remove(ticket)
                    on_end(ticket)
        finally:
            for ticket in tickets:  # an error or Ctrl-C leaves none of them behind
                self.cancel(ticket)
        return tickets

    def _admit(self):
        """Start waiting requests, in their order, while there are slots for all of their beams."""
        taken = sum(ticket.request.num_beams for ticket in self.active)
        while self.waiting and taken + self.waiting[0].request.num_beams <= self.n_slots:
            ticket = self.waiting.popleft()
            self.active.append(ticket)
            self.rows += ticket.rows
            taken += ticket.request.num_beams

    def _prefill(self):
        """Read about self.prefill missing tokens, oldest requests first: of each context all but
        the last token. How a prompt is divided into chunks depends on the prompt alone."""
        for row in self.rows:
            self._roll(row)
        reading = [row for row in self.rows if row.missing > 1]
        reading.sort(key=lambda row: row.ticket.number)
        if reading:
            self._read(_prefill_batch(reading, self.prefill))
        for ticket in list(self.active):
            if ticket.request.max_new_tokens == 0 and ticket.rows[0].missing == 1:
                self._end(ticket, "length")  # it only asks for its prompt's logprobs

    def _roll(self, row):
        """Move the start of the context if the text has outgrown block_size."""
        start = window_start(row.start, len(row.text), self.block_size)
        if start != row.start:
            row.start, row.cached, row.ticket.rolled = start, 0, True

    def _read(self, rows):
        """Bring the next chunk of each row's context into the cache."""
        tokens = []
        for row in rows:
            first = row.start + row.cached
            tokens.append(row.text[first : first + _chunk(row)])
        slots = [self.rows.index(row) for row in rows]
        hidden = self._forward(tokens, [row.cached for row in rows], slots)
        for row, read, h in zip(rows, tokens, hidden, strict=True):
            if row.ticket.request.echo and not row.ticket.rolled:
                self._echo(row, h[: len(read)])
            row.cached += len(read)

    def _echo(self, row, hidden):
        """Store the logprobs of the prompt's tokens that follow those of `hidden` (T, C)."""
        ids = row.text[row.cached + 1 :][: len(hidden)]
        logits = self._logits(hidden[: len(ids)])  # (T, n_vocab)
        row.ticket.prompt_tokens += with_logprobs(logits, ids, [row.ticket.request] * len(ids))

    def _forward(self, tokens, starts, slots):
        """Hidden states (B, T, C) of `tokens`, B lists of up to T ids, each from position starts[i]
        on, in `slots`. What follows the ids of a shorter list has no meaning."""
        width, positions, x = max(map(len, tokens)), [], []
        for ids, start in zip(tokens, starts, strict=True):
            own, padding = list(range(start, start + len(ids))), width - len(ids)
            # Padding repeats the last token at its position: the cache stays the same.
            x.append(ids + ids[-1:] * padding)
            positions.append(own + own[-1:] * padding)
        length = max(row[-1] for row in positions) + 1
        positions = torch.tensor(positions, device=self.device)
        x = torch.tensor(x, device=self.device)
        return self.model(x, positions=positions, cache=self.cache.rows(slots, length))

    def _logits(self, h):
        """Hidden states (…, C) → float32 logits (…, n_vocab)."""
        return self.model.logits(h)[..., : self.n_vocab].float()

    def _extend_texts(self, tickets, drafts, of):
        """Sample the next token of each ticket, from the logits of(rows, ahead) (B, n_vocab), and
        append it or end; where it is the next one of the row's draft, go on after that."""
        growing = [ticket.rows[0] for ticket in tickets]
        accepted = dict.fromkeys(drafts, 0)
        ahead = 0
        while growing:
            self._sample([row.ticket for row in growing], of(growing, ahead))
            growing = [
                row
                for row in growing
                if row.ticket.finish_reason is None
                and row.text[-1:] == drafts.get(row, [])[ahead : ahead + 1]
            ]
            ahead += 1
            for row in growing:
                accepted[row] += 1
        for row, count in accepted.items():
            n_drafted = len(drafts[row])
            row.cached -= n_drafted - count  # those that were wrong
            row.lookup.verified(n_drafted, count)
            row.ticket.n_drafted += n_drafted
            row.ticket.n_accepted += count

    def _sample(self, tickets, logits):
        """Sample the next token of each ticket, from logits (B, n_vocab), and append it or end."""
        requests = [ticket.request for ticket in tickets]
        generators = [ticket.generator for ticket in tickets]
        ids = sample(logits, requests, generators, [ticket.text for ticket in tickets])
        for ticket, token in zip(tickets, with_logprobs(logits, ids, requests), strict=True):
            if token.id in ticket.request.stop_ids:
                ticket.stop = token
                self._end(ticket, "stop")
                continue
            ticket.text.append(token.id)
            ticket.tokens.append(token)
            if len(ticket.tokens) == ticket.request.max_new_tokens:
                self._end(ticket, "length")

    def _extend_beams(self, ticket, logits):
        """Extend the beams of a ticket by one token, or store its text if the search is over.
        logits (n_beams, n_vocab)."""
        growing = extend(ticket, logits)
        if growing is not None:
            self._branch(ticket, growing)
            return
        best = ticket.ended[0]
        ticket.tokens += best.tokens
        ticket.text += [token.id for token in best.tokens]
        self._end(ticket, best.reason)

    def _branch(self, ticket, growing):
        """Make [(score, parent, token), …] the rows of a ticket. The first child of a parent keeps
        its slot; every other child gets a copy of its cache, in the slot of a row without children
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
        for row, *state in children:  # last: all children of a parent needed its text
            row.text, row.tokens, row.score, row.start, row.cached = state
        ticket.rows = [row for row, *_ in children]

    def _new_row(self, ticket):
        """A Row in the next slot, which _admit() has reserved for this ticket."""
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
        if slot != last:  # the running rows always fill the first slots
            self.cache.move(last, slot, self.rows[last].cached)
            self.rows[slot] = self.rows[last]
        self.rows.pop()


def _prefill_batch(reading, most):
    """The first rows of `reading` that one forward pass reads, padded to the longest chunk: about
    `most` tokens."""
    batch, longest = [], 0
    for row in reading:
        longest = max(longest, _chunk(row))
        if batch and longest * (len(batch) + 1) > most:
            break
        batch.append(row)
    return batch


def _chunk(row):
    """How many tokens of its context are read next."""
    return min(row.missing - 1, PREFILL_CHUNK)
