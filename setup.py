"""Everything but the list of packages and the compiled engine is in pyproject.toml."""

from glob import glob

from setuptools import Extension, find_packages, setup

# Made where there is a C compiler that understands it; without it torch does the same, slower. It is loaded by ctypes.
# Loops take up to a third longer with -fwrapv, which Python asks for.
engine = Extension(
    "neuralode_flow.depth.engine._engine",
    sources=["neuralode_flow/depth/engine/engine.c"],
    depends=sorted(glob("neuralode_flow/depth/engine/*.h")),
    extra_compile_args=["-O3", "-g0", "-std=gnu11", "-fno-wrapv"],
    libraries=["m", "pthread"],
    optional=True,
)

# conf/ lies beside the package and is installed inside it, where discovery alone would not look.
setup(
    packages=[*find_packages(include=["neuralode_flow", "neuralode_flow.*"]), "neuralode_flow.conf"],
    ext_modules=[engine],
)
