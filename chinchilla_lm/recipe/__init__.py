"""What a person asks for: model, task, data, target, margin, and how to train. One definition, two ways to write it.

Every field is a key of a YAML recipe and a flag of the command line by the same name (`recover: {epochs: 2}` and
`--recover-epochs 2`). Flags win over `--recipe FILE`. Every wrong value ends as one InputError of one line.
"""

from chinchilla_lm.recipe.checks import layered, make_recipe, read_yaml, require_one_target, require_target
from chinchilla_lm.recipe.fields import TRAINING, Recipe
from chinchilla_lm.recipe.flags import add_flags, command_of, from_args
from chinchilla_lm.recipe.names import field_paths, flag_of

__all__ = [
    "TRAINING", "Recipe", "add_flags", "command_of", "field_paths", "flag_of", "from_args", "layered", "make_recipe",
    "read_yaml", "require_one_target", "require_target",
]  # fmt: skip
