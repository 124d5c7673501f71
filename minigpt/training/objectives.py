"""What a run minimises, with the metrics that it shows.

An objective is called with (model, batch) and returns the SUM of its losses and the COUNT of what
it summed over (targets, or pairs). The trainer divides by the count of a whole step, over all
micro-batches and processes. Another objective is a subclass, such as dpo.DPO.
"""

import torch

from minigpt.training.losses import next_token


class NextToken:
    """Predict the next token: pretraining, fine-tuning and classification."""

    def __call__(self, model, batch):
        """(sum, count): a scalar tensor in nats, and the number of targets, an int."""
        return next_token(model, batch)

    def metric_sums(self):
        """(n,) float64 on the CPU: what metrics() needs, summed over the batches since the last
        call. n is the same in every process."""
        return torch.zeros(0, dtype=torch.float64)

    def metrics(self, sums):
        """{name: value} from the metric_sums() of all processes, a list of n floats."""
        return {}
