"""The paper's training runs by name, and how to run one."""

from ..settings import Machine as Machine
from ..settings import Optimizer as Optimizer
from .by_path import from_json as from_json
from .by_path import parse_setting as parse_setting
from .by_path import read_recipe as read_recipe
from .by_path import recipe as recipe
from .by_path import with_settings as with_settings
from .chain import run_chain as run_chain
from .cost import Cost as Cost
from .cost import cost as cost
from .faster import faster as faster
from .launch import build as build
from .launch import run as run
from .launch_all import read_recipes as read_recipes
from .launch_all import run_all as run_all
from .open_images import open_data as open_data
from .paper_runs import RUNS as RUNS
from .recipe import Data as Data
from .recipe import Logits as Logits
from .recipe import Loss as Loss
from .recipe import Masks as Masks
from .recipe import Models as Models
from .recipe import Preset as Preset
from .recipe import Recipe as Recipe
from .recipe import Science as Science
from .recipe import to_json as to_json
from .stages import Stage as Stage
from .stages import StageResult as StageResult
from .stages import stages_table as stages_table

__all__ = [
    "RUNS",
    "Cost",
    "Data",
    "Logits",
    "Loss",
    "Machine",
    "Masks",
    "Models",
    "Optimizer",
    "Preset",
    "Recipe",
    "Science",
    "Stage",
    "StageResult",
    "build",
    "cost",
    "faster",
    "from_json",
    "open_data",
    "parse_setting",
    "read_recipe",
    "read_recipes",
    "recipe",
    "run",
    "run_all",
    "run_chain",
    "stages_table",
    "to_json",
    "with_settings",
]
