"""The test module of ``sage infer backend test``: its classes are created for the runner's target."""

import os

from sage_infer_testing.target import ENVIRONMENT_KEY, Target

if ENVIRONMENT_KEY in os.environ:
    globals().update(Target.from_json(os.environ[ENVIRONMENT_KEY]).suites())
