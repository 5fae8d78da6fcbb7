"""The labels of figures as HTML: Matplotlib's mathtext, as far as the figures use it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

# Signs of mathtext by name; a name that is not here is a function such as \log, and set upright.
_SIGNS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eta": "η", "theta": "θ", "kappa": "κ",
    "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ",
    "varphi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ", "Lambda": "Λ",
    "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω", "ell": "ℓ", "infty": "∞", "partial": "∂", "nabla": "∇",
    "Vert": "‖", "|": "‖", "times": "×", "cdot": "·", "pm": "±", "leq": "≤", "geq": "≥", "neq": "≠", "approx": "≈",
    "sim": "∼", "to": "→", "rightarrow": "→", "in": "∈", "sum": "∑", "prod": "∏", "int": "∫", "top": "⊤",
    "varepsilon": "ε", "langle": "⟨", "rangle": "⟩",
    "dot": "̇", "ldots": "…", "dots": "…", "{": "{", "}": "}", "%": "%", "$": "$", "_": "_",
}  # fmt: skip
_SPACES = {",": " ", ";": " ", ":": " ", " ": " ", "!": "", "quad": " ", "left": "", "right": ""}
_SHOWN = {"-": "−", "'": "′", " ": "", "=": " = ", "<": " &lt; ", ">": " &gt; "}
_FACES = ("mathrm", "mathbf", "mathit", "mathcal", "text", "operatorname")
_RAISED = {"_": "sub", "^": "sup"}
_TOKEN = re.compile(r"\\([A-Za-z]+|.)|(.)", re.DOTALL)


def to_html(text: str) -> str:
    """A label, with formulas between dollar signs, as HTML."""
    parts = re.split(r"(?<!\\)\$", text)
    if len(parts) % 2 == 0:  # a dollar sign alone is only a sign
        return escape(text.replace(r"\$", "$"))
    return "".join(_formula(part) if odd % 2 else escape(part.replace(r"\$", "$")) for odd, part in enumerate(parts))


def _formula(text: str) -> str:
    tokens = iter([(name, sign) for name, sign in _TOKEN.findall(text)])
    return "".join(_pieces(tokens))


def _pieces(tokens: Iterator[tuple[str, str]], upright: bool = False) -> Iterator[str]:
    """HTML until the tokens end, or the brace that was open is closed."""
    for name, sign in tokens:
        if sign == "}":
            return
        yield _piece(name, sign, tokens, upright)


def _piece(name: str, sign: str, tokens: Iterator[tuple[str, str]], upright: bool) -> str:
    if sign == "{":
        return "".join(_pieces(tokens, upright))
    if sign in _RAISED:
        return f"<{_RAISED[sign]}>{_next(tokens, upright)}</{_RAISED[sign]}>"
    if sign:
        shown = _SHOWN.get(sign, escape(sign))
        return f"<i>{shown}</i>" if sign.isalpha() and not upright else shown
    if name == "frac":
        return f"{_next(tokens, upright)}/{_next(tokens, upright)}"
    if name in _FACES:
        return _next(tokens, upright=True)
    if name in _SPACES:
        return _SPACES[name]
    if name in _SIGNS:
        return _SIGNS[name]
    return f"{escape(name)} "


def _next(tokens: Iterator[tuple[str, str]], upright: bool) -> str:
    """The HTML of the one token or group that follows."""
    for name, sign in tokens:
        if (name, sign) != ("", " "):
            return _piece(name, sign, tokens, upright)
    return ""
