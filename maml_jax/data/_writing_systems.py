"""Which characters `glyphs` draws, and which split each writing system is in.

The assignment is part of the benchmark: changing it makes numbers incomparable.
"""

# Blocks of Unicode, first and last code point; https://www.unicode.org/charts/
_META_TEST = {
    "Arabic": ((0x0600, 0x077F), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF)),
    "Armenian": ((0x0530, 0x058F),),
    "Hebrew": ((0x0590, 0x05FF),),
}
_META_VALIDATION = {
    "Georgian": ((0x10A0, 0x10FF), (0x2D00, 0x2D2F)),
    "Lao": ((0x0E80, 0x0EFF),),
    "NKo": ((0x07C0, 0x07FF),),
    "Ogham": ((0x1680, 0x169F),),
    "Old Italic": ((0x10300, 0x1032F),),
    "Coptic": ((0x03E2, 0x03EF), (0x2C80, 0x2CFF)),
    "Tifinagh": ((0x2D30, 0x2D7F),),
}
_META_TRAIN = {
    "Greek": ((0x0370, 0x03E1), (0x03F0, 0x03FF), (0x1F00, 0x1FFF)),
    "Cyrillic": ((0x0400, 0x052F), (0xA640, 0xA69F)),
    "Latin": ((0x0041, 0x024F), (0x1E00, 0x1EFF), (0x2C60, 0x2C7F), (0xA720, 0xA7FF)),
    "Phonetic alphabet": ((0x0250, 0x02AF), (0x1D00, 0x1DBF)),
    "Canadian syllabics": ((0x1400, 0x167F),),
    "Digits and currency": ((0x0030, 0x0039), (0x20A0, 0x20CF)),
    "Letterlike symbols": ((0x2100, 0x214F),),
    "Script and Fraktur": ((0x1D49C, 0x1D537),),
    "Enclosed letters and digits": ((0x2460, 0x24FF),),
    "Arrows": ((0x2190, 0x21FF), (0x27F0, 0x27FF), (0x2900, 0x297F), (0x2B00, 0x2BFF)),
    "Mathematical operators": (
        (0x2200, 0x22FF),
        (0x27C0, 0x27EF),
        (0x2980, 0x29FF),
        (0x2A00, 0x2AFF),
    ),
    "Technical symbols": ((0x2300, 0x23FF),),
    "Box drawing": ((0x2500, 0x259F),),
    "Geometric shapes": ((0x25A0, 0x25FF),),
    "Symbols": ((0x2600, 0x26FF),),
    "Dingbats": ((0x2700, 0x27BF),),
}

WRITING_SYSTEMS = {
    "meta_test": _META_TEST,
    "meta_validation": _META_VALIDATION,
    "meta_train": _META_TRAIN,
}
"""Split -> writing system -> its ranges of code points. In the order in which characters
that look alike are kept: of two, the one in the earlier writing system stays."""

FACES = (
    "DejaVuSans.ttf",
    "DejaVuSerif.ttf",
    "STIXGeneral.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif-Italic.ttf",
)
"""Faces of the fonts that matplotlib ships, in order of preference. Bold and oblique ones
are left out: stroke weight and slant are drawn at random anyway."""
