"""What a run minimises, with the metrics that it shows.

An objective is called with (model, batch) and returns the SUM of its losses and the COUNT of what
it summed over (targets, pairs, or answers). The trainer divides by the count of a whole step, over
all micro-batches and processes. Another objective is a subclass of Objective, such as dpo.DPO.
"""

import torch

from minigpt.training.losses import next_token


class Objective:
    """An objective without metrics, which is also evaluated. samples: texts that it wrote in its
    last evaluation, to be shown."""

    samples = ()

    @property
    def held_out(self):
        """The Objective whose mean over the val data is the val loss."""
        return self

    def metric_sums(self):
        """(n,) float64 on the CPU: what metrics() needs, summed over the batches since the last
        call. n is the same in every process."""
        return torch.zeros(0, dtype=torch.float64)

    def metrics(self, sums):
        """{name: value} from the metric_sums() of all processes, a list of n floats. With a "loss"
        where that of a step is not worth showing."""
        return {}


class NextToken(Objective):
    """Predict the next token: pretraining, fine-tuning and classification."""

    def __call__(self, model, batch):
        """(sum, count): a scalar tensor in nats, and the number of targets, an int."""
        return next_token(model, batch)


class BatchSums:
    """Sums of metrics, a (n,) tensor of each batch on its device; read once a step, so that a GPU
    is waited for once."""

    def __init__(self, n):
        self._sums = [torch.zeros(n)]

    def add(self, values):
        """Add a batch's values: n scalars, tensors or numbers."""
        device = next((v.device for v in values if torch.is_tensor(v)), "cpu")
        values = [torch.as_tensor(v, dtype=torch.float32, device=device) for v in values]
        self._sums.append(torch.stack(values).detach())

    def take(self):
        """(n,) float64 on the CPU: the sums of all batches since the last call."""
        device = self._sums[-1].device
        total = torch.stack([sums.to(device) for sums in self._sums]).sum(dim=0)
        self._sums = self._sums[:1]
        return total.cpu().double()
