"""A hook's methods are the moments of a run, by their exact names."""

import pytest

from tiekd.errors import RecipeError
from tiekd.training.hook import Hook, check_moments


def test_check_moments_names_the_nearest():
    """A method for a moment that doesn't exist is refused with the nearest moment's name."""

    class Diary(Hook):
        def before_training(self, state):
            pass

    told = r"^hooks \(mine.diary\): a hook has no method 'before_training', .* 'before_train'\?"
    with pytest.raises(RecipeError, match=told):
        check_moments(Diary(), "hooks (mine.diary)")


def test_check_moments_refuses_what_is_no_hook():
    """An object of a class that isn't derived from Hook is refused."""

    class Diary:
        def after_iteration(self, state):
            pass

    told = r"^hooks \(mine.diary\): build made a Diary; it must be a tiekd.Hook"
    with pytest.raises(RecipeError, match=told):
        check_moments(Diary(), "hooks (mine.diary)")


def test_check_moments_accepts_all_of_hooks():
    """All moments of Hook, attributes that aren't methods, and other methods are accepted."""

    class Diary(Hook):
        after_how_many = 3

        def after_iteration(self, state):
            pass

        def write(self):
            pass

    check_moments(Diary(), "hooks (mine.diary)")
