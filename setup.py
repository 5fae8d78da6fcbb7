"""Everything but the list of packages is in pyproject.toml."""

from setuptools import find_packages, setup

# conf/ lies beside the package and is installed inside it, where discovery alone would not look.
setup(packages=[*find_packages(include=["neuralode_flow", "neuralode_flow.*"]), "neuralode_flow.conf"])
