"""The glossary says what is so: names exist, terms stand in order, and words that were given up name nothing."""

import ast
import re
from pathlib import Path
from pkgutil import resolve_name

import linop_gn as lg

PAGE = (Path(__file__).parents[1] / "docs" / "glossary.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^\* (\*\*.*?)(?=^\* |^$)", PAGE, re.MULTILINE | re.DOTALL)


def test_terms_stand_in_alphabetical_order_with_one_sentence_each():
    terms = [re.match(r"\*\*(.*?)\*\*", entry)[1] for entry in ENTRIES]
    assert len(terms) > 40
    assert terms == sorted(set(terms))
    for entry in ENTRIES:
        assert entry.count(".\n") == 1, entry


def test_names_exist():
    for name in re.findall(r"`((?:lg|linop_gn)\.[\w.]+)`", PAGE):
        resolve_name(re.sub(r"^lg\.", "linop_gn.", name))


def test_words_that_were_given_up_are_names_of_nothing():
    told = PAGE.partition("what is said for them: ")[2]
    given_up = re.findall(r"\w+", re.sub(r"\(.*?\)", "", told, flags=re.DOTALL))
    assert len(given_up) > 10
    word = re.compile(rf"(?:^|_)(?:{'|'.join(given_up)})s?(?:_|$)")
    for file in Path(lg.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for field in ("name", "arg", "attr", "id"):
                name = getattr(node, field, None)
                snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() if isinstance(name, str) else ""
                assert not word.search(snake), f"{file}: {name}"
