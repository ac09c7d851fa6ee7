"""How the documentation is built: ``python -m sphinx -W --keep-going docs site``."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

# The pages describe what comes in the wheel, whatever else is installed here, and texts do not depend on a terminal:
# as many columns as a page shows without scrolling.
os.environ.update({"NASDISTILL_PLUGINS": "", "COLUMNS": "74", "NO_COLOR": "1"})

from nasdistill import __version__  # noqa: E402
from nasdistill.bridge import prepare_imports  # noqa: E402

prepare_imports()  # autodoc imports every component; some of them import timm or torchvision

project = "nasdistill"
release = version = __version__
copyright = "the authors of nasdistill, Apache 2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "generated_pages",
]
exclude_patterns = ["_ext"]
myst_heading_anchors = 4

default_role = "code"  # docstrings write `name` for code
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
add_module_names = False
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"nasdistill {version}"
html_copy_source = False
html_show_sphinx = False
