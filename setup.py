"""Everything but the list of packages and the compiled engine is in pyproject.toml."""

import hashlib
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup

# What the engine was made of, so that one that was made of others is known when it is loaded (compiled.py).
sources = sorted(glob("neuralode_flow/depth/engine/*.[ch]"))
made_of = hashlib.sha256(b"".join(Path(name).read_bytes() for name in sources)).hexdigest()

# One that was made of others is made anew, whatever the times of the files say.
for built in map(Path, glob("neuralode_flow/depth/engine/_engine*")):
    if made_of.encode() not in built.read_bytes():
        built.unlink()

# Made where there is a C compiler that understands it; without it torch does the same, slower. It is loaded by ctypes.
# Loops take up to a third longer with -fwrapv, which Python asks for.
engine = Extension(
    "neuralode_flow.depth.engine._engine",
    sources=["neuralode_flow/depth/engine/engine.c"],
    depends=sources,
    define_macros=[("MADE_OF", f'"{made_of}"')],
    extra_compile_args=["-O3", "-g0", "-std=gnu11", "-fno-wrapv"],
    libraries=["m", "pthread"],
    optional=True,
)

# conf/ lies beside the package and is installed inside it, where discovery alone would not look.
setup(
    packages=[*find_packages(include=["neuralode_flow", "neuralode_flow.*"]), "neuralode_flow.conf"],
    ext_modules=[engine],
)
