"""What jobs/pretrain.py does, without its evaluation: `python pretrain_only.py RECIPE key=value …`."""

import sys

from jetfoundry import cli, ray_session, runs
from jetfoundry.train.ray_train import pretrain
from jetfoundry.train.recipe import Recipe


def main(recipe: Recipe) -> int:
    with ray_session.session(recipe.ray.address, recipe.ray.num_cpus, recipe.ray.object_store_gb):
        pretrain(recipe, runs.open_run(recipe.run, recipe))
    return cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main, Recipe))
