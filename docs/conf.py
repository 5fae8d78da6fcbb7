"""How ./scripts/docs builds the pages; no step needs a network."""

import os
import tempfile
from pathlib import Path

from neuralode_flow import __version__

project = "neuralode_flow"
author = copyright = "the neuralode_flow authors"
version = release = __version__

extensions = [
    "myst_nb",  # pages in Markdown, and notebooks, which are run
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build"]
nitpicky = False

html_theme = "furo"
html_title = f"neuralode_flow {version}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_sourcelink = False

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

# Kernels of notebooks read no configuration of a user's, and say nothing of how they are connected.
profile = Path(tempfile.mkdtemp()) / "profile_default"
profile.mkdir()
(profile / "ipython_kernel_config.py").write_text("c = get_config()\nc.IPKernelApp.log_level = 'ERROR'\n")
os.environ["IPYTHONDIR"] = str(profile.parent)

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more: shapes and units
napoleon_google_docstring = False
napoleon_use_rtype = False
