"""Hostile formulas and YAML files for test_fuzz.py, all made from a seed.

Formulas grow from the grammar of the language, with Python that does not belong to it in some places, or are the
formulas of the published files with characters changed. YAML files are the ones of the repository with keys, types and
values changed, with text pushed in, and with what is known to break loaders.
"""

from __future__ import annotations

import copy
import datetime
import random
from pathlib import Path

import yaml

from jetfoundry.features.functions import FUNCTIONS, REFUSED

ROOT = Path(__file__).resolve().parents[2]

COLUMNS = ("part_px", "part_charge", "part_isPhoton", "aux_genpart_pid", "jet_pt", "jet_eta", "jet_label", "good_jet")
_BINARY = ("+", "-", "*", "/", "//", "%", "**", "&", "|", "^", "<<", ">>", "<", "<=", ">", ">=", "==", "!=")
_FOREIGN_BINARY = ("@", " and ", " or ", " in ", " not in ", " is ", " if 1 else ", ":=", ",", ".", ";", "=")
_NUMBERS = (
    "0", "1", "2", "3", "-1", "0.5", "1e-3", "64", "65", "200", "1e308", "1e400", "9**64", "2**63", "2**64", "10**400",
    "9" * 400, "9" * 5000, "0x" + "f" * 3000, "1_000", "1j", "True", "False", "None", "...", "1e", "0777", "1.e5", "³",
)  # fmt: skip
_NAMES = (
    "jet_ptt", "x", "_x", "__class__", "__import__", "__builtins__", "ε", "jеt_pt", "ｊet_pt", "part_px\u200b", "np",
    "lambda", "import", "self", "os", "np.pi", "math.e", "np.inf", "np.nan", "np.float32", "ak.pi", "np.__dict__",
)  # fmt: skip
_CALLED = (
    "open", "eval", "exec", "compile", "__import__", "getattr", "setattr", "vars", "globals", "print", "input", "type",
    "np.load", "np.save", "np.fromfile", "np.memmap", "np.zeros", "np.ones", "np.frompyfunc", "np.vectorize", "np.core",
    "os.system", "np.lib.npyio.os.system", "ak.from_buffers", "ak.to_parquet", "math.factorial", "().__class__", "len",
    "np.ctypeslib.load_library", "jet_pt.tofile", "part_px.values.dump", "np.testing.rundocs", "int", "str", "list",
)  # fmt: skip
_KEYWORDS = ("axis=1", "axis=0", "axis=-1", "axis=None", "axis=jet_pt", "keepdims=True", "ascending=False", "clip=True",
             "out=jet_pt", "dtype=object", "where=1", "to='float32'", "value=1", "**{'out': jet_pt}", "*[jet_pt]",
             "a_min=0", "nan=part_px", "maxlen=3", "maxlen=10**9", "target=10**12")  # fmt: skip
_WHOLE = (
    "__import__('os').system('touch owned')", "().__class__.__bases__[0].__subclasses__()", "open('owned', 'w')",
    "getattr(getattr(np, 'lib'), 'npyio')", "(lambda: jet_pt)()", "[x for x in jet_pt]", "{x: 1 for x in jet_pt}",
    "(x := jet_pt)", "f'{jet_pt}'", "f'{__import__(\"os\").system(\"touch owned\")}'", "jet_pt if jet_pt else 0",
    "10**10**10", "9**9**9**9", "'a'*10**9", "[0]*10**9", "np.zeros((10**9,))", "np.arange(10**12)", "1 << 10**10",
    "to_numpy(9)**to_numpy(10**9)", "to_numpy(1) << to_numpy(10**10)", "ak.pad_none(part_px, 10**12)",
    "part_px[:, ::2]",
    "np._pad(part_px, 10**10)", "_repeat_pad(part_px, 10**10)", "(-8)**to_numpy(0.5)", "jet_pt**(-8)**0.5", "await x",
    "np.stack([jet_pt, jet_eta], axis=1)", "ak.concatenate([part_px, part_px], axis=1)", "part_px[:, 0]",
    "yield jet_pt",
    "part_px[:, :3]", "part_px[part_px > 0]", "part_px[ak.argsort(part_px, axis=1)]", "part_px[jet_label]", "import os",
    "ak.fill_none(ak.firsts(part_px), 0)", "ak.values_astype(part_px, 'object')", "ak.values_astype(part_px, 'O')",
    "ak.values_astype(part_px, 'i4,f8')", "ak.values_astype(jet_pt, 'S10')", "_hash(jet_label, jet_label)", "jet_pt\0",
    "print(jet_pt)", "del jet_pt", "jet_pt; jet_eta", "jet_pt\njet_eta", "jet_pt = 1", "\\", "'", '"""', "#", "", " ",
    "jet_pt # comment", "'\\ud800'", "\ud800", "b'x'", "jet_pt.__class__", "np.pi.real", "*jet_pt", "**jet_pt", "$HOME",
    "`id`", "%s%n", "../../etc/passwd", "{{7*7}}", "jet_pt\u202e", "\x1b[2J", "𝐣𝐞𝐭_𝐩𝐭 + 1",
    "ak.any(part_px > 0, axis=1)",
    "deltaR_pair(part_px, part_px, part_charge > 0)", "deltaR_pair(jet_pt, 1, 2)", "X_bb & (jet_pt > 200)",
)  # fmt: skip


class Formulas:
    """An endless supply of formulas."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(f"formulas {seed}")
        self.published = sorted({text for _, tree in published() for text in _texts(tree) if len(text) < 300})

    def __call__(self) -> str:
        draw = self.random.random()
        if draw < 0.5:
            return self.grown(self.random.randint(1, 5), foreign=0.0)
        if draw < 0.7:
            return self.grown(self.random.randint(1, 5), foreign=0.05)
        if draw < 0.78:
            return self.random.choice(_WHOLE)
        if draw < 0.80:
            return self.deep()
        base = self.random.choice(self.published) if draw < 0.9 else self.grown(4, foreign=0.0)
        return self.scratched(base)

    def grown(self, depth: int, foreign: float) -> str:
        """An expression; each part is Python from outside the language with the probability `foreign`."""
        pick, alien = self.random.choice, self.random.random() < foreign
        if depth <= 0 or self.random.random() < 0.1:
            if alien:
                return pick((pick(_NAMES), pick(_NUMBERS), f"({pick(_WHOLE)})", repr(pick(_WHOLE))))
            return pick(COLUMNS) if self.random.random() < 0.7 else pick(_NUMBERS[:12])

        def part() -> str:
            return self.grown(depth - 1, foreign)

        match self.random.randrange(10):
            case 0 | 1 | 2:
                return f"({part()} {pick(_FOREIGN_BINARY if alien else _BINARY)} {part()})"
            case 3:
                return f"{pick(('-', '~', '+', 'not ', '*', 'await ') if alien else ('-', '~', '+'))}({part()})"
            case 4:
                chosen = pick((":, 0", ":, :3", ":, -1", ":, 10**9", "::2", "...", "'x'", "0", part(), part()))
                return f"{part()}[{chosen}]"
            case 5:
                joined = ", ".join(part() for _ in range(self.random.randint(1, 3)))
                return f"{pick(('np.stack', 'ak.concatenate', '_concat', '_stack'))}([{joined}], axis=1)"
            case _:
                return self.call(part, alien)

    def call(self, part, alien: bool) -> str:
        pick = self.random.choice
        if alien:
            name, number = pick((*_CALLED, *REFUSED)), self.random.randint(0, 3)
        else:
            name = pick(sorted(FUNCTIONS))
            function = FUNCTIONS[name]
            number = function.least if function.most is None else self.random.randint(function.least, function.most)
            name = pick(("", "np.", "ak.", "math.", "numpy.")) + name
        given = [part() for _ in range(min(number, 4))]
        if self.random.random() < 0.6 and name.split(".")[-1] in ("sum", "max", "any", "argmax", "mean", "num", "std"):
            given = [given[0], "axis=1"] if given else []
        elif self.random.random() < 0.1:
            given.append(pick(_KEYWORDS))
        return f"{name}({', '.join(given)})"

    def deep(self) -> str:
        """Nesting and lengths that parsers dislike."""
        number = self.random.choice((50, 90, 200, 900, 3000, 9000, 50_000))
        opening, inside, closing = self.random.choice((
            ("(", "jet_pt", ")"), ("-", "jet_pt", ""), ("~", "jet_label", ""), ("jet_pt+", "1", ""), ("1+", "1", ""),
            ("abs(", "jet_pt", ")"), ("part_px[", "0", "]"), ("2**", "2", ""), ("jet_pt<", "1", ""), ("[", "1", "]"),
            ("1**", "1", ""),
            ("", "jet_pt", ".real"), ("", "jet_pt", "[0]"), ("", "np", "()"), ("x if x else ", "x", ""),
            ("not ", "1", ""),
            ("lambda: ", "1", ""), ("{", "1", "}"), ("f'{", "1", "}'"), ("9*", "9", ""), ("(9**64)*", "9", ""),
            ("ak.concatenate([part_px,part_px],axis=1)+", "1", ""), ("1<<", "1", ""), ("'", "", "'"), ("\\\n", "1", ""),
        ))  # fmt: skip
        return opening * number + inside + closing * (number if self.random.random() < 0.9 else 0)

    def scratched(self, text: str) -> str:
        """`text` with some characters changed."""
        for _ in range(self.random.randint(1, 4)):
            begin = self.random.randint(0, len(text))
            end = min(len(text), begin + self.random.randint(0, 5))
            new = self.random.choice((
                "", "", text[begin:end] * 2, *"()[]{}.,:;'\"\\_*&|^~<>=!@#$%", "\n", "\t", "\0", "é", "０", "\u2028",
                " and ", " if ", "**", "1e999", "lambda ", "__", "np.", "[:, 0]", ", axis=0", "10**9",
            ))  # fmt: skip
            text = text[:begin] + new + text[end:]
        return text


def published() -> list[tuple[str, object]]:
    """(kind, content) of the repository's YAML files, of each as a user edits them."""
    small = ROOT / "tests" / "fuzz" / "bases"
    found = [(path.stem.partition("-")[0], yaml.safe_load(path.read_text())) for path in sorted(small.glob("*.yaml"))]
    data = ROOT / "datasets"
    for kind, pattern in (
        ("data", "substructure.yaml"), ("task", "tasks/*.yaml"), ("schema", "schemas/*.yaml"),
        ("ingest", "*delphes.yaml"),
        ("discriminants", "discriminants/*.yaml"), ("simulate", "jetclass2_sim.yaml"), ("card", "cards/*.yaml"),
        ("recipe", "../jobs/recipes/*[!n].yaml"), ("compare", "../jobs/recipes/comparison.yaml"),
    ):  # fmt: skip
        found += [(kind, yaml.safe_load(path.read_text())) for path in sorted(data.glob(pattern))]
    return found


def _texts(tree: object) -> list[str]:
    if isinstance(tree, dict):
        return [text for part in (*tree, *tree.values()) for text in _texts(part)]
    if isinstance(tree, list):
        return [text for part in tree for text in _texts(part)]
    return [tree] if isinstance(tree, str) else []


_VALUES = (
    None, True, False, 0, 1, -1, 0.5, 2, 10**9, 10**18, 10**400, -(10**400), 2**63, float("nan"), float("inf"), 1e308,
    -float("inf"), 1e-320, "", " ", "nan", "1e-3", "1 GeV", "200 MeV", "0.8 cm", "10%", "1,5", "a" * 5000, "\0",
    "/etc/passwd",
    "../../../etc/passwd", "/dev/null", ".", "~", "~nobody/x", "$HOME", "file:///etc/passwd", "http://localhost:9/x",
    "*",
    "binary:X_bb vs", "binary:X_bb vs QCD vs X_cc", "binary: vs ", "X_bb+X_bb", "X_bb vs QCD", "QCD", "sophon42",
    "auto",
    "jet_pt", "part_px", "__class__", "{}", "{0.__class__}", "%(x)s", "\x1b[2J", "é\u202eß", "\n", [], {}, [[]],
    [None], [{}],
    {1: 2}, {None: 1}, {"": ""}, {1: 2, "a": 3}, [1, "a", None], [[1, 2], [3]], [0, 1], [1, 0], [float("nan")] * 2,
    list(range(50)), datetime.date(2026, 11, 22), datetime.datetime(2026, 1, 1), b"bytes", {"x"}, {(1, 2): 3},
    "owned.yaml",
    {datetime.date(2026, 1, 1): 1}, {1.5: 1}, {True: 1}, {"name": "x"}, [b"x"], "flat", "wrap", "simple", "custom",
    "error",
)  # fmt: skip

_PUSHED = (
    "&a ", "*a", "&a [*a]", "&a {b: *a}", "<<: *a", "<<: [1]", "<<: 1",
    "!!python/object/apply:os.system ['touch owned']",
    "!!python/object/new:os.system ['touch owned']", "!!python/name:os.system", "!!python/module:os",
    "!!python/tuple [1]",
    "!!timestamp x", "!!int x", "!!float x", "!!bool x", "!!null x", "!!binary ä", "!!set {a, b}", "!!omap [a: 1]",
    "!!pairs [a: 1]", "!!str 1", "!unknown x", "!<tag:yaml.org,2002:int> x", "2026-13-45", "2026-02-30 25:61:61",
    "0x_", "0b_",
    "0o_", "1:99:99", "190:20:30.15", "9" * 5000, "1e99999", ".inf", "-.inf", ".nan", "~", "? [a]\n: b",
    "? {a: b}\n: c", "---",
    "...", "--- a\n--- b", "%YAML 9.9", "%TAG ! tag:x,2000:", "\t", "\t- a", "- ", "-", "{", "}", "[", "]", "|", ">",
    "|9", "'", '"',
    '"\\x00"', '"\\ud800"', "\0", "\x07", "\ufeff", "\u2028", "#", "@", "`", "=", "<<", "!!merge x", ": ", "a: a: a",
    "é: ü",
)  # fmt: skip


def bombs() -> list[tuple[str, str]]:
    """(kind or '' for any, text) of what is known to break YAML loaders, or readers that follow names."""
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
    )
    merges = "a0: &a0 {k0: 1}\n" + "".join(
        f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 10)}]\n  k{n}: 1\n" for n in range(1, 12)
    )
    around = (("[", "", "]"), ("{a: ", "1", "}"), ("- ", "a", ""), ("? ", "a", ""), ("[", "", ""))
    nested = [o * n + i + c * n for n in (100, 1000, 3000, 100_000) for o, i, c in around]
    stairs = "".join(" " * n + f"a{n}:\n" for n in range(1500))
    chain = "".join(f"  v{n}: v{n - 1} + 1\n" for n in range(1, 3000))
    fibonacci = "".join(f"  v{n}: v{n - 1} + v{n - 2}\n" for n in range(2, 80))
    doubling = "".join(f"  v{n}: ak.concatenate([v{n - 1}, v{n - 1}], axis=1)\n" for n in range(1, 60))
    data = "inputs: {{a: {{length: {}, vars: [v1]}}}}\nlabels: {{scheme: sophon188}}\nnew_variables:\n"
    data += "  v0: part_px\n  v1: part_px\n"
    task = "name: t\ntitle: t\nselection: v{0} > 0\nlabel: {{target: v{0}}}\nvariables:\n  v0: jet_pt\n  v1: jet_pt\n"
    simulated = (ROOT / "datasets" / "jetclass2_sim.yaml").read_text()
    return [
        ("data", data.format(4) + chain), ("data", data.format(4) + doubling + "observers: [v59]\n"),
        ("data", data.format(10**9)), ("task", task.format(79) + fibonacci), ("task", task.format(2999) + chain),
        ("simulate", simulated.replace("jets: 24000", f"jets: {10**15}")), ("task", "tasks: [., .]"),
        ("task", "tasks: ['\\0', aaaa]"),
        *(("", text) for text in (laughs, merges, *nested, stairs, "&a [*a]", "&a {a: *a}", "a: &x [*x, *x]", "\xff")),
    ]  # fmt: skip


class Yamls:
    """An endless supply of (kind, YAML text)."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(f"yamls {seed}")
        self.formula = Formulas(seed)
        self.bases, self.bombs = published(), bombs()
        self.kinds = sorted({kind for kind, _ in self.bases})

    def __call__(self) -> tuple[str, str]:
        kind = self.random.choice((*self.kinds, "data", "data", "task"))
        if self.random.random() < 0.01:
            of, text = self.random.choice(self.bombs)
            return of or kind, text
        tree = copy.deepcopy(self.random.choice([tree for name, tree in self.bases if name == kind]))
        for _ in range(self.random.choice((0, 1, 1, 1, 2, 3, 6))):
            tree = self.changed(tree)
        text = yaml.dump(tree, Dumper=yaml.CSafeDumper, allow_unicode=True, sort_keys=False, width=10**6)
        return kind, self.pushed(text) if self.random.random() < 0.35 else text

    def changed(self, tree: object) -> object:
        """`tree` with one thing in it changed."""
        pick = self.random.choice
        at, parent, key = tree, None, None
        while isinstance(at, dict | list) and at and self.random.random() < 0.8:
            parent, key = at, pick(list(at)) if isinstance(at, dict) else self.random.randrange(len(at))
            at = at[key]
        if parent is None:
            return self.value(tree) if self.random.random() < 0.1 else tree
        match self.random.randrange(9):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                new = pick((f"{key}s", str(key)[:-1], str(key).upper(), 1, None, 1.5, True, "name", datetime.date.max))
                parent[new] = parent.pop(key)
            case 2:
                parent[key] = pick(([at], {"x": at}, [at, at], str(at), {str(key): at}))
            case 3 if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(at))
            case 4 if isinstance(at, int | float) and abs(at) < 1e30:
                parent[key] = pick(
                    (-at, at * 10**6, at / 1000, f"{at} GeV", at + 0.5, str(at), 10**30 * (int(at) or 1))
                )
            case _:
                parent[key] = self.value(at)
        return tree

    def value(self, before: object) -> object:
        if isinstance(before, str) and self.random.random() < 0.5:
            return self.formula().replace("\ud800", "")
        return copy.deepcopy(self.random.choice(_VALUES))

    def pushed(self, text: str) -> str:
        """`text` with pieces of YAML pushed in, lines lost, repeated or shifted."""
        lines = text.split("\n")
        for _ in range(self.random.randint(1, 3)):
            at = self.random.randrange(len(lines))
            line = lines[at]
            cut = self.random.choice((0, len(line), line.find(":") + 1, self.random.randint(0, len(line))))
            match self.random.randrange(6):
                case 0:
                    del lines[at : at + self.random.randint(1, 3)]
                    lines = lines or [""]
                case 1:
                    lines.insert(at, line)
                case 2:
                    lines[at] = " " * self.random.randint(1, 5) + line
                case _:
                    lines[at] = (
                        f"{line[:cut]} {self.random.choice(_PUSHED)}{line[cut:] if self.random.random() < 0.5 else ''}"
                    )
        return "\n".join(lines)


UNSAFE = {
    "open('owned', 'w')": "open", "os.open('owned', os.O_CREAT)": "open", "__import__('this')": "import",
    "os.system('true')": "os.system", "os.mkdir('owned')": "os.mkdir", "os.putenv('OWNED', '1')": "os.putenv",
    "__import__('socket').socket()": "socket", "__import__('subprocess').run(['true'])": "subprocess.Popen",
    "os.remove('nothing')": "os.remove", "__import__('pickle').loads(b'cos\\ngetcwd\\n.')": "pickle.find_class",
    "os.rename('a', 'b')": "os.rename", "__import__('ctypes').CDLL(None)": "ctypes.dlopen", "1": "exec",
    "any(0 for _ in iter(int, 1))": "too long",
}  # fmt: skip
"""What no formula may do -> the event by which the watch notices it; that the last one does not end is noticed, too."""


class Arguments:
    """An endless supply of command lines: (job's number, arguments)."""

    def __init__(self, seed: int, keys: list[list[str]]) -> None:
        self.random, self.keys = random.Random(f"arguments {seed}"), keys
        self.formula = Formulas(seed)

    def __call__(self) -> tuple[int, list[str]]:
        job = self.random.randrange(len(self.keys))
        return job, [self.argument(self.keys[job]) for _ in range(self.random.randint(1, 4))]

    def argument(self, keys: list[str]) -> str:
        pick = self.random.choice
        key = pick((*keys, *keys, "x", "", ".", "a.b.c", "__class__", f"{pick(keys)}.x", f"{pick(keys)}s"))
        value = pick((str(pick(_VALUES)), pick(_PUSHED), self.formula(), str(self.random.random()), "3", "true"))
        return f"{key}={value}" if self.random.random() < 0.97 else value
