"""The settings of every command, checked: YAML file, then flags, then ``key.sub=value`` overrides.

Each command has one pydantic model, in a file of its name; an unknown key is an error that names the nearest known one.
Flags that a user did not give are absent (not None), so that a YAML file's value stands.
"""

from __future__ import annotations

from rewardlm.config.compare import CompareSettings as CompareSettings
from rewardlm.config.compare import CorrectionMethod as CorrectionMethod
from rewardlm.config.experiment import ExperimentSettings as ExperimentSettings
from rewardlm.config.experiment import StageFinetune as StageFinetune
from rewardlm.config.experiment import StageMeasure as StageMeasure
from rewardlm.config.experiment import StagePreference as StagePreference
from rewardlm.config.fields import Dtype as Dtype
from rewardlm.config.fields import Names as Names
from rewardlm.config.fields import NamesOrNone as NamesOrNone
from rewardlm.config.fields import Part as Part
from rewardlm.config.fields import Resume as Resume
from rewardlm.config.fields import flatten as flatten
from rewardlm.config.fields import is_function_name as is_function_name
from rewardlm.config.fields import split_names as split_names
from rewardlm.config.finetune import FinetuneSettings as FinetuneSettings
from rewardlm.config.finetune import ReplaySettings as ReplaySettings
from rewardlm.config.finetune import RetainSettings as RetainSettings
from rewardlm.config.finetune import TrainingSettings as TrainingSettings
from rewardlm.config.folders import cache_folder as cache_folder
from rewardlm.config.folders import data_folder as data_folder
from rewardlm.config.frontier import FrontierSettings as FrontierSettings
from rewardlm.config.gate import GateSettings as GateSettings
from rewardlm.config.imports import ImportSettings as ImportSettings
from rewardlm.config.interpret import AttributionSettings as AttributionSettings
from rewardlm.config.interpret import CausesSettings as CausesSettings
from rewardlm.config.interpret import InsideSettings as InsideSettings
from rewardlm.config.interpret import InterpretSettings as InterpretSettings
from rewardlm.config.label import LabelSettings as LabelSettings
from rewardlm.config.measure import MAX_NEW_TOKENS as MAX_NEW_TOKENS
from rewardlm.config.measure import MEASURE_PRESETS as MEASURE_PRESETS
from rewardlm.config.measure import MeasureSettings as MeasureSettings
from rewardlm.config.measure import PrimarySettings as PrimarySettings
from rewardlm.config.model import ChatSettings as ChatSettings
from rewardlm.config.model import GenerationSettings as GenerationSettings
from rewardlm.config.model import LoraSettings as LoraSettings
from rewardlm.config.model import MergeSettings as MergeSettings
from rewardlm.config.model import ModelSettings as ModelSettings
from rewardlm.config.model import QuantisationSettings as QuantisationSettings
from rewardlm.config.power import PowerSettings as PowerSettings
from rewardlm.config.prefer import LABELS as LABELS
from rewardlm.config.prefer import USUAL_MAX_TOXICITY as USUAL_MAX_TOXICITY
from rewardlm.config.prefer import PairSettings as PairSettings
from rewardlm.config.prefer import PreferSettings as PreferSettings
from rewardlm.config.reading import build as build
from rewardlm.config.reading import merge as merge
from rewardlm.config.reading import validate as validate
from rewardlm.config.rewards import Doubt as Doubt
from rewardlm.config.rewards import OverlongSettings as OverlongSettings
from rewardlm.config.rewards import ProbeSettings as ProbeSettings
from rewardlm.config.rewards import RewardedSettings as RewardedSettings
from rewardlm.config.rewards import RewardSettings as RewardSettings
from rewardlm.config.rewards import TermSettings as TermSettings
from rewardlm.config.rlaf import KlSettings as KlSettings
from rewardlm.config.rlaf import RlafSettings as RlafSettings
from rewardlm.config.rlaf import SimilaritySettings as SimilaritySettings
from rewardlm.config.score import ScoreSettings as ScoreSettings
from rewardlm.config.section import Section as Section
from rewardlm.config.services import EndpointSettings as EndpointSettings
from rewardlm.config.services import PerspectiveSettings as PerspectiveSettings
from rewardlm.config.services import ServerSettings as ServerSettings
from rewardlm.config.services import ServiceSettings as ServiceSettings
from rewardlm.config.services import ServicesSettings as ServicesSettings
from rewardlm.config.services import ServiceUrl as ServiceUrl
from rewardlm.config.services import how_asked as how_asked
from rewardlm.config.services import secrets_in_url as secrets_in_url
from rewardlm.config.services import without_secrets as without_secrets
from rewardlm.config.steer import BY_A_JUDGE as BY_A_JUDGE
from rewardlm.config.steer import SteerFitSettings as SteerFitSettings
from rewardlm.config.steer import SteerImportSettings as SteerImportSettings
from rewardlm.config.steer import strength_problem as strength_problem
from rewardlm.config.utility import READ_TASKS as READ_TASKS
from rewardlm.config.utility import UTILITY_TASKS as UTILITY_TASKS
from rewardlm.config.utility import ReadTask as ReadTask
from rewardlm.config.utility import UtilitySettings as UtilitySettings
from rewardlm.config.utility import UtilityTask as UtilityTask
from rewardlm.config.yaml_files import read_yaml as read_yaml
