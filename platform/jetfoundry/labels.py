"""The 188 JetClass-II classes by name and index, their groups, and label schemes made from them.

Index = value of the `jet_label` column: 0-14 resonance X to two prongs, 15-160 X -> YY with three or
four prongs, 161-187 QCD. Letters: b, c, s, g as they are, q = u or d, e, m = muon, v = neutrino,
tauh/taue/taum = tau decaying to hadrons/electron/muon (arXiv:2405.12972, table of classes).

A *label scheme* is data: a tuple of class names and a table of 188 integers, -1 where a class is dropped.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jetfoundry.errors import ConfigError, nearest

__all__ = [
    "CLASSES",
    "FAMILIES",
    "GROUPS",
    "GROUP_WEIGHTS",
    "INDEX",
    "UNSEEN",
    "LabelScheme",
    "class_list_hash",
    "label_scheme",
    "select_classes",
]

_TWO_PRONG = "bb cc ss qq bc cs bq cq sq gg ee mm tauhtaue tauhtaum tauhtauh"

_FOUR_PRONG = """
bbbb bbcc bbss bbqq bbgg bbee bbmm bbtauhtaue bbtauhtaum bbtauhtauh bbb bbc bbs bbq bbg bbe bbm
cccc ccss ccqq ccgg ccee ccmm cctauhtaue cctauhtaum cctauhtauh ccb ccc ccs ccq ccg cce ccm
ssss ssqq ssgg ssee ssmm sstauhtaue sstauhtaum sstauhtauh ssb ssc sss ssq ssg sse ssm
qqqq qqgg qqee qqmm qqtauhtaue qqtauhtaum qqtauhtauh qqb qqc qqs qqq qqg qqe qqm
gggg ggee ggmm ggtauhtaue ggtauhtaum ggtauhtauh ggb ggc ggs ggq ggg gge ggm
bee cee see qee gee bmm cmm smm qmm gmm
btauhtaue ctauhtaue stauhtaue qtauhtaue gtauhtaue
btauhtaum ctauhtaum stauhtaum qtauhtaum gtauhtaum
btauhtauh ctauhtauh stauhtauh qtauhtauh gtauhtauh
qqqb qqqc qqqs bbcq ccbs ccbq ccsq sscq qqbc qqbs qqcs bcsq bcs bcq bsq csq
bcev csev bqev cqev sqev qqev bcmv csmv bqmv cqmv sqmv qqmv
bctauev cstauev bqtauev cqtauev sqtauev qqtauev
bctaumv cstaumv bqtaumv cqtaumv sqtaumv qqtaumv
bctauhv cstauhv bqtauhv cqtauhv sqtauhv qqtauhv
"""

_QCD = """
bbccss bbccs bbcc bbcss bbcs bbc bbss bbs bb bccss bccs bcc bcss bcs bc bss bs b
ccss ccs cc css cs c ss s light
"""

CLASSES: tuple[str, ...] = (
    *(f"X_{name}" for name in _TWO_PRONG.split()),
    *(f"X_YY_{name}" for name in _FOUR_PRONG.split()),
    *(f"QCD_{name}" for name in _QCD.split()),
)
"""Class names in the order of `jet_label`."""

INDEX: dict[str, int] = {name: i for i, name in enumerate(CLASSES)}
"""Class name -> value of `jet_label`."""

UNSEEN: tuple[str, ...] = ("X_bs",)
"""Decays that JetClass-II has no class for: what pre-training never saw, downstream tasks may. Simulated jets of them
carry the numbers from 188 on, which an ingest accepts with `schema=datasets/schemas/jetclass2_unseen.yaml` only."""

FAMILIES: dict[str, tuple[int, ...]] = {
    "Res2P": tuple(range(15)),
    "Res34P": tuple(range(15, 161)),
    "QCD": tuple(range(161, 188)),
}
"""The three families of files in which JetClass-II is published."""


def _indices(text: str) -> tuple[int, ...]:
    """Read '0-2,5' as (0, 1, 2, 5)."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)


# Name, indices, class weight of the official card; the order is that of the card.
_GROUP_ROWS: tuple[tuple[str, str, float], ...] = (
    ("X_QQ", "0-8", 0.4),
    ("X_gg", "9", 0.05),
    ("X_ll", "10-11", 0.08),
    ("X_tauhtaul", "12-13", 0.01),
    ("X_tauhtauh", "14", 0.015),
    ("X_YY_QQQQ", "15-18,32-34,48-49,63,115-126", 0.32),
    ("X_YY_QQgg", "19,35,50,64", 0.06),
    ("X_YY_gggg", "77", 0.0075),
    ("X_YY_QQQ", "25-28,41-44,56-59,70-73,127-130", 0.05),
    ("X_YY_QQg", "29,45,60,74", 0.005),
    ("X_YY_Qgg", "83-86", 0.005),
    ("X_YY_ggg", "87", 0.0015),
    ("X_YY_QQll", "20-21,36-37,51-52,65-66", 0.16),
    ("X_YY_QQl", "30-31,46-47,61-62,75-76", 0.01),
    ("X_YY_Qll", "90-93,95-98", 0.012),
    ("X_YY_QQtauhtaul", "22-23,38-39,53-54,67-68", 0.04),
    ("X_YY_QQtauhtauh", "24,40,55,69", 0.04),
    ("X_YY_Qtauhtaul", "100-103,105-108", 0.0018),
    ("X_YY_Qtauhtauh", "110-113", 0.0024),
    ("X_YY_ggll", "78-79", 0.04),
    ("X_YY_ggl", "88-89", 0.0025),
    ("X_YY_gll", "94,99", 0.003),
    ("X_YY_ggtauhtaul", "80-81", 0.01),
    ("X_YY_ggtauhtauh", "82", 0.01),
    ("X_YY_gtauhtaul", "104,109", 0.00045),
    ("X_YY_gtauhtauh", "114", 0.0006),
    ("X_YY_QQlv", "131-142", 0.08),
    ("X_YY_QQtaulv", "143-154", 0.015),
    ("X_YY_QQtauhv", "155-160", 0.05),
    ("QCD", "161-187", 0.25),
)

GROUPS: dict[str, tuple[int, ...]] = {name: _indices(text) for name, text, _ in _GROUP_ROWS}
"""The 30 groups of classes inside which the Sophon card samples flat in (jet_pt, jet_sdmass)."""

GROUP_WEIGHTS: dict[str, float] = {name: weight for name, _, weight in _GROUP_ROWS}
"""Class weight of each group in the Sophon card."""


@dataclasses.dataclass(frozen=True)
class LabelScheme:
    """A choice and merging of the 188 classes.

    `classes` are the names of the scheme's outputs; `table[i]` is the output index of JetClass-II class
    `i`, or -1 if jets of that class are dropped.
    """

    name: str
    classes: tuple[str, ...]
    table: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def members(self) -> tuple[tuple[str, ...], ...]:
        """Names of the JetClass-II classes that each output stands for."""
        found: list[list[str]] = [[] for _ in self.classes]
        for name, output in zip(CLASSES, self.table, strict=True):
            if output >= 0:
                found[output].append(name)
        return tuple(map(tuple, found))

    def apply(self, jet_label: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Map `jet_label` (B,) to output indices (B,); -1 marks jets of dropped classes."""
        table = np.asarray(self.table, dtype=np.int64)
        return table[np.asarray(jet_label, dtype=np.int64)]

    @property
    def hash(self) -> str:
        """Identity of the ordered class list; stored in checkpoints and compared at load."""
        return class_list_hash(self.classes)


def class_list_hash(classes: Sequence[str]) -> str:
    """First 12 hex digits of the SHA-256 of the ordered class names."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()[:12]


def select_classes(names: str) -> tuple[int, ...]:
    """Indices of a `+`-separated list of class, group or family names.

    >>> select_classes("X_bb+X_cc")
    (0, 1)
    >>> len(select_classes("QCD"))
    27
    """
    found: list[int] = []
    for name in (part.strip() for part in names.split("+")):
        if name in INDEX:
            found.append(INDEX[name])
        elif name in GROUPS or name in FAMILIES:
            found.extend(GROUPS.get(name) or FAMILIES[name])
        else:
            msg = f"unknown class or group {name!r}; {nearest(name, [*CLASSES, *GROUPS, *FAMILIES])}"
            raise ConfigError(msg)
    if len(set(found)) != len(found):
        twice = sorted({CLASSES[i] for i in found if found.count(i) > 1})
        msg = f"{names!r} names these classes twice: {', '.join(twice)}"
        raise ConfigError(msg)
    return tuple(found)


def _restriction(name: str, kept: Sequence[int]) -> LabelScheme:
    table = [-1] * len(CLASSES)
    for out, index in enumerate(kept):
        table[index] = out
    return LabelScheme(name, tuple(CLASSES[i] for i in kept), tuple(table))


def _merging(name: str, rows: str) -> LabelScheme:
    """A scheme that merges classes, from lines 'output: class class …'; classes that stand nowhere are dropped."""
    table = [-1] * len(CLASSES)
    outputs: list[str] = []
    for row in rows.strip().splitlines():
        output, _, members = row.partition(":")
        for member in members.split():
            assert table[INDEX[member]] == -1, f"{name}: {member} stands in two outputs"
            table[INDEX[member]] = len(outputs)
        outputs.append(output.strip())
    return LabelScheme(name, tuple(outputs), tuple(table))


# GloParT's categories (CMS; 37, with the number of c as 0c, 1c, 2c) from the classes that have the same prongs inside
# the jet. X stands for H and for the top quark, so spectra are those of X. The five t -> b l v are not there: no class
# of JetClass-II has one b and one lepton. t -> b q is X -> bq or bc. QCD: two or more b, else one b, else c; `2b` is
# GloParT's QCD bb, as the name QCD_bb is a class of JetClass-II (two b and no c or s).
_GLOPART = """
H_VV_qqqq_0c: X_YY_qqqq X_YY_qqqs X_YY_ssqq X_YY_ssss
H_VV_qqqq_1c: X_YY_qqqc X_YY_qqcs X_YY_sscq
H_VV_qqqq_2c: X_YY_ccqq X_YY_ccsq X_YY_ccss
H_VV_qqq_0c: X_YY_qqq X_YY_qqs X_YY_ssq X_YY_sss
H_VV_qqq_1c: X_YY_qqc X_YY_csq X_YY_ssc
H_VV_qqq_2c: X_YY_ccq X_YY_ccs
H_WW_qqev_0c: X_YY_qqev X_YY_sqev
H_WW_qqev_1c: X_YY_cqev X_YY_csev
H_WW_qqmv_0c: X_YY_qqmv X_YY_sqmv
H_WW_qqmv_1c: X_YY_cqmv X_YY_csmv
H_WW_qqtauev_0c: X_YY_qqtauev X_YY_sqtauev
H_WW_qqtauev_1c: X_YY_cqtauev X_YY_cstauev
H_WW_qqtaumv_0c: X_YY_qqtaumv X_YY_sqtaumv
H_WW_qqtaumv_1c: X_YY_cqtaumv X_YY_cstaumv
H_WW_qqtauhv_0c: X_YY_qqtauhv X_YY_sqtauhv
H_WW_qqtauhv_1c: X_YY_cqtauhv X_YY_cstauhv
H_bb: X_bb
H_cc: X_cc
H_ss: X_ss
H_qq: X_qq
H_tauhtaue: X_tauhtaue
H_tauhtaum: X_tauhtaum
H_tauhtauh: X_tauhtauh
t_bqq_0c: X_YY_qqb X_YY_bsq
t_bqq_1c: X_YY_bcq X_YY_bcs
t_bq_0c: X_bq
t_bq_1c: X_bc
QCD_2b: QCD_bbccss QCD_bbccs QCD_bbcc QCD_bbcss QCD_bbcs QCD_bbc QCD_bbss QCD_bbs QCD_bb
QCD_2c: QCD_ccss QCD_ccs QCD_cc
QCD_1b: QCD_bccss QCD_bccs QCD_bcc QCD_bcss QCD_bcs QCD_bc QCD_bss QCD_bs QCD_b
QCD_1c: QCD_css QCD_cs QCD_c
QCD_0b0c: QCD_ss QCD_s QCD_light
"""

_SCHEMES: dict[str, LabelScheme] = {
    "sophon188": _restriction("sophon188", range(188)),
    # Sophon* of arXiv:2405.12972: nothing is merged, the 146 three- and four-prong classes are dropped.
    "sophon42": _restriction("sophon42", [*FAMILIES["Res2P"], *FAMILIES["QCD"]]),
    "glopart32": _merging("glopart32", _GLOPART),
}


def label_scheme(name: str) -> LabelScheme:
    """The scheme called `name`: `sophon188`, `sophon42`, `glopart32`, or `binary:<A> vs <B>`.

    In `binary:<A> vs <B>` both sides are `+`-separated class, group or family names; A becomes 0, B 1.

    >>> label_scheme("binary:X_bb vs QCD").apply([0, 1, 187]).tolist()
    [0, -1, 1]
    """
    if name.startswith("binary:"):
        sides = name.removeprefix("binary:").split(" vs ")
        if len(sides) != 2:
            msg = f"label scheme {name!r}: wanted 'binary:<A> vs <B>', e.g. 'binary:X_bb vs QCD'"
            raise ConfigError(msg)
        table = [-1] * len(CLASSES)
        for out, side in enumerate(sides):
            for index in select_classes(side):
                if table[index] != -1:
                    msg = f"label scheme {name!r}: {CLASSES[index]} stands on both sides"
                    raise ConfigError(msg)
                table[index] = out
        return LabelScheme(name, tuple(side.strip() for side in sides), tuple(table))
    if name not in _SCHEMES:
        msg = f"unknown label scheme {name!r}; {nearest(name, [*_SCHEMES, 'binary:<A> vs <B>'])}"
        raise ConfigError(msg)
    return _SCHEMES[name]
