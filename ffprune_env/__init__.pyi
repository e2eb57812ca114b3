"""The public names, and where they come from; the package reads them here, and so do type checkers."""

from .budget.allocation import Allocation as Allocation
from .budget.budget import Budget as Budget
from .budget.even import ffn_only as ffn_only
from .budget.even import uniform as uniform
from .budget.mapping import allocate as allocate
from .budget.units import PruneUnit as PruneUnit
from .env import PruneBanditEnv as PruneBanditEnv
from .evaluators.build import load_evaluator as load_evaluator
from .evaluators.language_model import LMEvaluator as LMEvaluator
from .evaluators.protocol import Evaluator as Evaluator
from .evaluators.surrogate import SurrogateEvaluator as SurrogateEvaluator
from .evaluators.zero_shot import evaluate_zero_shot as evaluate_zero_shot
from .export.folder import save_pruned as save_pruned
from .export.measures import measure_of as measure_of
from .export.model_card import CardFacts as CardFacts
from .lm.loss import perplexity as perplexity
from .lm.models import load_model as load_model
from .lm.pruned_folder import load_pruned as load_pruned
from .modeling.auto_classes import register_auto_classes as register_auto_classes
from .pruning.calibration import RidgeCalibration as RidgeCalibration
from .pruning.prunable import PrunableModel as PrunableModel
from .pruning.saliency import Statistics as Statistics
from .pruning.saliency import collect_statistics as collect_statistics
from .pruning.saliency import wanda_scores as wanda_scores
from .pruning.sequential import SequentialCalibration as SequentialCalibration
from .recovery.passages import load_chat as load_chat
from .recovery.recover import recover as recover
from .recovery.session import Recovery as Recovery
from .recovery.settings import RecoverySettings as RecoverySettings
from .search.callbacks import ProgressiveSchedulingCallback as ProgressiveSchedulingCallback
from .search.saved_policy import Policy as Policy
from .search.schedule import ProgressiveSchedule as ProgressiveSchedule
from .search.search import SearchResult as SearchResult
from .search.search import search as search
from .texts.openings import openings_of as openings_of
from .texts.windows import load_windows as load_windows

__version__: str
