"""jetfoundry: ROOT in, jet foundation models and taggers out, on a laptop or a Ray cluster.

The library behind `jobs/`. Imports go one way:
labels, schema, config <- data, sim <- models <- train <- downstream, evaluate.
Importing this package starts nothing and imports neither torch nor Ray.
"""

__version__ = "0.1.0"
