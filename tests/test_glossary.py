"""Each word in the names of modules and public names has an entry in the glossary, unless it has its everyday meaning."""

import itertools
import pathlib
import re

import jaxopt_nn

REPOSITORY = pathlib.Path(__file__).parent.parent
PACKAGE = pathlib.Path(jaxopt_nn.__file__).parent
#: Words that mean what they mean in English, in Python, in JAX or in statistics.
PLAIN = set(
    """
    abs across algebra along analyse arguments arrays base between by bytes calls cases checks choice classes classification
    combine common compile compress core cpu data draw drawing elementwise error evaluate events every exact explain files for
    from global gpu histogram imported infer init integer is keep keeps language later levels load loss make max memory
    minmax model named numbers numerics of only orbax page parallel per plots primitives progress regression save shrink
    single square std step store structure sum table tables tensor tensors text to tpu train transform tree where words
    write
    """.split()
)
#: Names of single methods, formats and frameworks, and short names, by the entry that explains them.
SHORT = {
    "aot": "compile", "capture": "tap", "charts": "report", "cubic": "schedule", "erk": "allocation",
    "evolution": "regrowth", "html": "report", "lamp": "allocation", "linen": "framework", "m": "pattern",
    "multilabel": "label", "n": "pattern", "nbytes": "bits", "nnx": "framework", "nof": "pattern", "obd": "criterion",
    "qtensor": "code", "quant": "quantization", "rigl": "regrowth", "snip": "criterion", "svg": "report",
    "synflow": "criterion", "obs": "one", "ria": "one", "sparsegpt": "one", "wanda": "one",
}  # fmt: skip


def words() -> dict[str, str]:
    """Each word, with a name that it stands in."""
    names = [*jaxopt_nn.__all__]
    for path in PACKAGE.rglob("*.py"):
        names += path.relative_to(PACKAGE).with_suffix("").parts
    return {
        word: name
        for name in names
        for word in re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_")
        if word
    }


def terms() -> set[str]:
    """The words of the glossary's entries."""
    text = (REPOSITORY / "docs" / "explanation" / "glossary.md").read_text()
    block = re.search(r"```\{glossary\}\n:sorted:\n(.*?)```", text, re.DOTALL)
    assert block
    lines = [line for line in block[1].splitlines() if line and not line.startswith(" ")]
    return {word for line in lines for word in re.split(r"[^\w]+", line.lower())}


def explained(word: str, known: set[str]) -> bool:
    """Whether a term is this word, or another form of it: ``calibrate`` and ``calibration``, ``leaves`` and ``leaf``."""
    common = lambda term: len([*itertools.takewhile(lambda pair: pair[0] == pair[1], zip(word, term))])
    return any(common(term) >= max(3, min(len(word), len(term)) - 2) for term in known)


def test_every_word_of_a_name_is_explained():
    known = terms()
    missing = {
        word: name for word, name in words().items() if word not in PLAIN and not explained(SHORT.get(word, word), known)
    }
    assert not missing, f"words without an entry in docs/explanation/glossary.md, with a name that has them: {missing}"


def test_a_word_without_an_entry_is_noticed():
    assert not explained("sparsify", terms() - {"sparsity"}) and explained("leaves", {"leaf"}) and not explained("tap", {"tag"})
