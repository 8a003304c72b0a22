"""Every mutant can still be planted: its code is in its function exactly once, its tests exist."""

import ast
from pathlib import Path

import pytest
from mutants_table import MUTANTS
from planting import Planting, dumped, planted

ROOT = Path(__file__).parents[2]
# So many there are at least: a mutant is replaced by a better one, not dropped.
AT_LEAST = 183


def test_mutants_table_has_all_rows():
    """Mutant names are unique, and there are at least as many rows as before."""
    names = {mutant.name for mutant in MUTANTS}
    assert len(names) == len(MUTANTS) >= AT_LEAST


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_mutant_can_be_planted(mutant):
    """Each mutant changes its module's code, and its test files exist."""
    path = ROOT / mutant.path
    text = planted(path, mutant.function, mutant.old, mutant.new)
    assert dumped(ast.parse(text)) != dumped(ast.parse(path.read_text(encoding="utf-8")))
    assert all((ROOT / test.partition("::")[0]).is_file() for test in mutant.tests)


CODE = '''
LIMITS = {"few": 1, "many": 9}

class Reader:
    """Reads."""

    def read(self, size):
        """Reads more."""
        # A remark.
        if size > 0 and self.open:  # another
            self.count += 1
            self.close(
                size, force=True
            )
        return f"{size} bytes, {self.count + 1}"

def read(size):
    return (
        size
        + 1
    )
'''


@pytest.mark.parametrize(
    ("function", "old", "new", "line"),
    [
        ("Reader.read", "size > 0", "size or 1", "if (size or 1) and self.open:  # another"),
        ("Reader.read", "self.count + 1", "self.count", "return f'{size} bytes, {self.count}'"),
        ("Reader.read", "self.count += 1\nself.close(size, force=True)", "", "pass"),
        ("Reader.read", "self.close(size, force=True)", "", "pass"),
        ("Reader", "size > 0 and self.open", "size", "if size:  # another"),
        ("read", "return size + 1", "size += 1\nreturn size", "size += 1"),
        ("", "1, 9", "2, 9", 'LIMITS = {"few": 2, "many": 9}'),
        ("", "LIMITS = {'few': 1, 'many': 9}", "LIMITS = {}", "LIMITS = {}"),
    ],
)
def test_planted_finds_code_by_syntax_tree(function, old, new, line, tmp_path):
    """Code is found by its syntax tree, replaced, and comments elsewhere are kept."""
    path = tmp_path / "code.py"
    path.write_text(CODE)
    text = planted(path, function, old, new)
    assert line in map(str.strip, text.split("\n"))
    assert text.count("# A remark.") == 1


@pytest.mark.parametrize(
    ("function", "old", "new", "message"),
    [
        ("Reader.read", "size", "9", "code.py: Reader.read has it 3 times, not once: size"),
        ("", "size + 1", "size", "code.py: the module has it 0 times, not once: size + 1"),
        ("Reader.write", "size", "9", "there is no Reader.write"),
        ("read", "size + 1", "size +", "code.py: not Python: size + 1 or size +"),
    ],
)
def test_planted_rejects_code_not_found_once(function, old, new, message, tmp_path):
    """Code that isn't found exactly once, or is no Python, raises Planting."""
    path = tmp_path / "code.py"
    path.write_text(CODE)
    with pytest.raises(Planting) as caught:
        planted(path, function, old, new)
    assert str(caught.value) == message


def test_planted_replaces_text_in_other_files(tmp_path):
    """In a file that is no Python, text that is there once is replaced."""
    path = tmp_path / "recipe.yaml"
    path.write_text("a: 1\nb: 2\n")
    assert planted(path, "", "b: 2", "b: 3") == "a: 1\nb: 3\n"
    with pytest.raises(Planting, match="has the text 2 times, not once"):
        planted(path, "", ": ", ":")


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_mutant_can_be_planted_in_reformatted_code(mutant, tmp_path):
    """Each mutant can also be planted in reformatted code."""
    path = tmp_path / "code.py"
    tree = ast.parse((ROOT / mutant.path).read_text(encoding="utf-8"))
    path.write_text(ast.unparse(tree))
    text = planted(path, mutant.function, mutant.old, mutant.new)
    assert dumped(ast.parse(text)) != dumped(tree)
