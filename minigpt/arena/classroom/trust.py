"""Which voters vote as if they tossed a coin: a test of each voter against the others.

    {"voter-1": 0.02, "voter-2": 35.1}  ←  evidence(ledger.votes(running=True))

A vote has the probability p under the Bradley–Terry ratings of the OTHER voters' votes, and 1/2
under a coin. The product of 1/(2p) over a voter's votes is the likelihood ratio of the coin. If the
votes do follow the others' ratings, it exceeds 20 with a probability of at most 1/20 (Markov's
inequality: its expectation is 1). Of k answers a vote has 1/k under the coin; ties and "none"
choose no answer, and do not count.
"""

import math

import numpy as np

from minigpt.arena.ratings import odds_without

SUSPICIOUS = 20.0  # the evidence above which a voter is marked


def evidence(votes):
    """voter → the likelihood ratio of random votes for the votes (minigpt.arena.store.Vote) of each
    voter; 1.0 if nothing speaks for or against it."""
    by_voter = {}
    for vote in votes:
        by_voter.setdefault(vote.voter, []).append(vote.decided)
    if not by_voter:
        return {}
    names, odds = odds_without(list(by_voter.values()))
    index = {name: i for i, name in enumerate(names)}
    return {
        voter: math.exp(min(700.0, sum(_log_ratio(battle, row, index) for battle in battles)))
        for (voter, battles), row in zip(by_voter.items(), odds, strict=True)
    }


def _log_ratio(battle, odds, index):
    """log(1 / (k p)) of a vote; 0.0 if it chose none of its k answers."""
    if not isinstance(battle.choice, int):
        return 0.0
    of_sides = odds[[index[name] for name in battle.names]]
    log_p = of_sides[battle.choice] - np.logaddexp.reduce(of_sides)
    return -math.log(len(battle.names)) - float(log_p)
