"""A model whose exits answer from a recording, so that one with random weights exits where a trained one would.

No class is changed for it: the view shares the model's modules and makes loops of its own.
"""

from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..evaluation.recording import Recording
from ..model.evidence import Evidence
from ..model.execution import Execution
from ..model.loop import Loop
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.rows import Rows


class ScriptedLoop(Loop):
    """A loop whose exits are computed, which costs as much as ever, and then answer with the recorded logits.

    Args:
        call: what a `Loop` takes.
        recording: of rows and exits as the model's.
        numbers: (B,) the recorded row of each row of the batch; None: the rows in their order.
    """

    def __init__(self, *call: Any, recording: Recording, numbers: Tensor | None) -> None:
        super().__init__(*call)
        self.logits, self.numbers = recording.evidence.logits, numbers

    def run_exits(self, rows: Rows, states: Tensor) -> Evidence:
        """The evidence of the exits at the rows' depths, in the rows' order, with recorded logits."""
        evidence, index = super().run_exits(rows, states), rows.index.cpu()
        numbers = index if self.numbers is None else self.numbers[index]
        logits = [
            self.logits[numbers[own], self.exit_depths.index(depth)]
            for depth, own in rows.slices()
            if depth in self.exit_depths
        ]
        return evidence._replace(logits=torch.cat(logits).to(evidence.logits))


def scripted(
    model: PFBerxitForSequenceClassification, execution: Execution, recording: Recording, numbers: Tensor | None = None
) -> PFBerxitForSequenceClassification:
    """A view of a model with certain short cuts and recorded answers; the model itself stays as it is.

    Args:
        recording: of rows and exits as the model's.
        numbers: (B,) the recorded row of each row of the batch; None: the rows in their order.
    """
    view = copy(model)
    view.execution = execution
    view.new_loop = partial(ScriptedLoop, recording=recording, numbers=numbers)
    return view
