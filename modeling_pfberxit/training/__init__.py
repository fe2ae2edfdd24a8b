"""Fine-tuning with the stock `Trainer`: strategies, prototypes, token exits, truncation, cards; and retrofitting."""

from .elasticbert import from_elasticbert
from .finetuning import start_at_base_rates
from .prototypes import fit_prototypes
from .retrofitted import retrofit
from .strategies import StrategyCallback, set_loss_weight_rate, train
from .token_exits import fit_token_exits
from .truncation import truncate

__all__ = [
    "StrategyCallback",
    "fit_prototypes",
    "fit_token_exits",
    "from_elasticbert",
    "retrofit",
    "set_loss_weight_rate",
    "start_at_base_rates",
    "train",
    "truncate",
]
